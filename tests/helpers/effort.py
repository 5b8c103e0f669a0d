"""How many examples a property is tried with."""

from hypothesis import settings


def examples(number: int) -> int:
    """``number``, or a tenth of it with the profile "quick", as of Hypothesis's own 100."""
    return max(1, number * settings.default.max_examples // 100)
