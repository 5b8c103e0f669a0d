"""Columns of text, and their numbers. Pure."""

from collections.abc import Sequence


def align(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns under ``head``, aligned right; the first, and each that begins with a space, left."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    left = [i == 0 or name.startswith(" ") for i, name in enumerate(head)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in [head, *lines]
    )


def whole(value: float) -> str:
    """``value`` without a fraction, with a space between thousands."""
    return f"{value:,.0f}".replace(",", " ")


def number(value: float | None) -> str:
    """``value`` with about three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else whole(value)
