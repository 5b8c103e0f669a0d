"""Makes a chain from a request: places its bytes in memory, and cuts them into buffers."""

from random import Random
from typing import Final

from pykvm.devices.virtio_blk.constants import HEADER_SIZE, VIRTIO_BLK_T_IN
from pykvm.testing.ring_driver import Buffer
from soak.ask import Ask
from soak.memory import Slot, Slots
from soak.model import SECTOR

NOWHERE: Final = 0xE000_0000
"""A guest-physical address without RAM."""
GAPS: Final = (0, 1, 8, 24, 64)
"""Bytes between two buffers. 0 makes two buffers look like one, except for their lengths."""
MOST_PIECES: Final = 8


def lay_out(
    ask: Ask, slots: Slots, dice: Random, most: int
) -> tuple[Slot, list[Buffer], list[Buffer]] | None:
    """A slot with the request's bytes, its chain, and the buffers that the device may write.

    The chain has at most ``most`` elements, of at least four. None: no memory is left.
    """
    room = min(most, 2 * MOST_PIECES) - 3
    if dice.random() < 0.75:
        head = min(HEADER_SIZE, len(ask.readable))
        readable = [head, *_cut(len(ask.readable) - head, dice, room)]
        left = room - len(readable) + 1
        writable = [*_cut(ask.writable - 1, dice, left), 1] if ask.writable else []
    else:
        readable = _cut(len(ask.readable), dice, 1 + room // 2)
        writable = _cut(ask.writable, dice, 1 + room // 2)
    align = dice.choice((1, 1, 8, SECTOR))
    pieces = len(readable) + len(writable)
    slot = slots.take(len(ask.readable) + ask.writable + pieces * (64 + align) + 64, dice)
    if slot is None:
        return None
    outs, lent = [], []
    at = 0
    for length in readable:
        gap = dice.choice(GAPS)
        outs.append(slot.put(ask.readable[at : at + length], gap, _fit(align, length)))
        at += length
    for length in writable:
        lent.append(slot.lend(length, dice.choice(GAPS), _fit(align, length)))
    slot.close()
    chain = [*lent, *outs] if ask.backwards else [*outs, *lent]
    if ask.hole:
        chain.insert(len(outs), Buffer(NOWHERE, SECTOR, ask.kind == VIRTIO_BLK_T_IN))
    return slot, chain, lent


def _fit(align: int, length: int) -> int:
    return align if length >= align else 1


def _cut(length: int, dice: Random, most: int) -> list[int]:
    """``length`` bytes in ``most`` pieces at most; in one or more if ``length`` is not 0."""
    if length <= 0:
        return []
    pieces = dice.choice((1, 1, dice.randint(1, MOST_PIECES)))
    pieces = max(1, min(pieces, most, length))
    unit = SECTOR if length % SECTOR == 0 and dice.random() < 0.6 else 1
    pieces = min(pieces, length // unit)
    places = sorted(dice.sample(range(1, length // unit), pieces - 1)) if pieces > 1 else []
    ends = [*(place * unit for place in places), length]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
