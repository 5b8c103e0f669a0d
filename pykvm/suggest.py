"""Suggestions for a mistyped word: the nearest word among those that exist. Pure."""

from collections.abc import Iterable

_SHORT = 5
"""Words shorter than this may have one typing mistake, longer ones two: short words are alike."""
_BEGINNING = 3
"""A beginning of at least this number of letters stands for the whole word."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The hint of an error about an unknown ``word``: the nearest of ``known``, or ``otherwise``.

    An option stands without quotes, every other word within them.
    """
    close = closest(word, known)
    if not close:
        return otherwise
    return f"did you mean {close}?" if close.startswith("-") else f"did you mean '{close}'?"


def closest(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that ``word`` most probably stands for; "" if none is near.

    A word is near if it is ``word`` after one or two typing mistakes (see :func:`_mistakes`), or
    begins with ``word``. Capitals do not count, nor do hyphens before a word.
    """
    plain = _plain(word)
    names = {_plain(name): name for name in reversed(list(known))}
    if plain in names:
        return names[plain]
    begun = [name for text, name in names.items() if text.startswith(plain)]
    if len(begun) == 1 and len(plain) >= _BEGINNING:
        return begun[0]
    most = 1 if len(plain) < _SHORT else 2
    mistakes, name = min(
        ((_mistakes(plain, text), name) for text, name in names.items()), default=(9, "")
    )
    return name if mistakes <= most and len(plain) > most else ""


def _plain(word: str) -> str:
    return word.lstrip("-").lower()


def _mistakes(one: str, other: str) -> int:
    """The fewest typing mistakes that turn ``other`` into ``one`` (optimal string alignment).

    A mistake is a letter too many, a letter too few, a wrong letter, or two swapped letters.
    """
    if abs(len(one) - len(other)) > _SHORT:
        return _SHORT
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        earlier, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            mistakes = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                mistakes = min(mistakes, earlier[j - 2] + 1)
            row.append(mistakes)
    return row[-1]
