"""A state in words: the cut, and the lost parts of writes. Pure."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from pykvm.crash.states import State
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind


def lost_sectors(state: State) -> dict[int, list[int]]:
    """The sectors of each entry of the log that are lost."""
    lost: dict[int, list[int]] = {}
    for number, piece in enumerate(state.frontier.pieces):
        if not state.kept >> number & 1:
            lost.setdefault(piece.entry, []).extend(piece.sectors)
    return lost


def describe(state: State, roles: Mapping[int, str] = MappingProxyType({})) -> list[str]:
    """Lines about ``state``: the cut first, then each write that is lost or torn.

    ``roles`` are the roles of sectors in the filesystem.
    """
    frontier = state.frontier
    entries = frontier.log.entries
    lines = [_cut(state)]
    lost = lost_sectors(state)
    volatile = Counter(piece.entry for piece in frontier.pieces for _ in piece.sectors)
    if not lost:
        lines.append("all writes before it survive")
    for number, sectors in lost.items():
        entry = entries[number]
        whole = len(sectors) == volatile[number]
        fate = "is lost" if whole else f"is torn, and loses {_runs(sectors)}"
        names = list(dict.fromkeys(roles[sector] for sector in sectors if sector in roles))
        about = f": {', '.join(names)}" if names else ""
        lines.append(f"{_request(number, entry)} {fate}{about}")
    return lines


def _cut(state: State) -> str:
    frontier = state.frontier
    begun = [one for one in enumerate(frontier.log.entries) if one[1].began < frontier.cut]
    text = f"the power is cut after event {frontier.cut} of {frontier.log.events}"
    if frontier.marks:
        text += f", after the mark {frontier.marks[-1]!r}"
    open_flushes = [
        number
        for number, entry in begun
        if entry.kind is WriteKind.FLUSH and frontier.cut <= entry.ended < NEVER
    ]
    if open_flushes:
        text += f", before flush {open_flushes[0]} ends"
    return text


def _request(number: int, entry: Entry) -> str:
    return f"{entry.kind.value} {number} ({_runs(range(entry.sector, entry.end))})"


def _runs(sectors: "list[int] | range") -> str:
    """Such as ``sectors 8 to 15, 20``."""
    runs: list[list[int]] = []
    for sector in sorted(sectors):
        if runs and runs[-1][1] == sector - 1:
            runs[-1][1] = sector
        else:
            runs.append([sector, sector])
    parts = [str(a) if a == b else f"{a} to {b}" for a, b in runs]
    return f"sector{'s' if len(sectors) > 1 else ''} {', '.join(parts)}"
