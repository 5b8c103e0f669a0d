"""What somebody may have meant who wrote a word that there is not. Pure."""

from collections.abc import Iterable

_SHORT = 5
"""In words shorter than this one slip leads elsewhere; two would lead anywhere."""
_BEGINNING = 3
"""Letters from which on a beginning stands for a word."""


def closest(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that ``word`` was meant to be, in all likelihood; "" if none.

    A slip is a letter too many, too few, another one, or two that changed places. Capitals do not
    count, nor do hyphens before a word.
    """
    plain = _plain(word)
    names = {_plain(name): name for name in reversed(list(known))}
    if plain in names:
        return names[plain]
    begun = [name for text, name in names.items() if text.startswith(plain)]
    if len(begun) == 1 and len(plain) >= _BEGINNING:
        return begun[0]
    most = 1 if len(plain) < _SHORT else 2
    slips, name = min(
        ((_slips(plain, text), name) for text, name in names.items()), default=(9, "")
    )
    return name if slips <= most and len(plain) > most else ""


def _plain(word: str) -> str:
    return word.lstrip("-").lower()


def _slips(one: str, other: str) -> int:
    """How many slips make ``one`` of ``other`` (optimal string alignment)."""
    if abs(len(one) - len(other)) > _SHORT:
        return _SHORT
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        earlier, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            slips = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                slips = min(slips, earlier[j - 2] + 1)
            row.append(slips)
    return row[-1]
