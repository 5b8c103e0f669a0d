"""The heads in flight of a virtqueue, as a snapshot holds them. Pure."""

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from pykvm.snapshot.fields import Saved

_HEAD: Final = Struct("<HBBIHH")


class SavedHead(NamedTuple):
    """A head in flight.

    With IN_ORDER it may be ``done`` (pushed) and wait for earlier heads: then ``wrote`` and
    ``length`` are the values of the push. A head of a packed queue has a buffer ``id`` and a
    number of ``descriptors``. A head of a split queue has 0 and 1.
    """

    head: int
    done: bool
    wrote: bool
    length: int
    id: int
    descriptors: int


def pack_heads(heads: Sequence[SavedHead]) -> bytes:
    """``heads`` as data."""
    return b"".join([_HEAD.pack(*head) for head in heads])


def unpack_heads(saved: Saved, size: int, in_order: bool) -> list[SavedHead]:
    """The field ``heads`` of ``saved``, a queue with ``size`` descriptors. SnapshotError."""
    data = saved.data("heads", 0, size * _HEAD.size)
    if len(data) % _HEAD.size:
        saved.refuse("heads ends within a head")
    heads = [SavedHead(*values) for values in _HEAD.iter_unpack(data)]
    if any(one.head >= size or one.done > 1 or one.wrote > 1 for one in heads):
        saved.refuse(f"heads names a head that a queue of {size} cannot have")
    if len({one.head for one in heads}) < len(heads):
        saved.refuse("heads names a head twice")
    if not all(one.descriptors for one in heads):
        saved.refuse("heads names a head without descriptors")
    if any(one.done for one in (heads[:1] if in_order else heads)):
        saved.refuse("heads names a head that is not in flight")
    return heads
