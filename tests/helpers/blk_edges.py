"""The edges that :func:`order` made: which operations wait for which others."""

from collections import Counter
from collections.abc import Iterator, Sequence

from pykvm.devices.virtio_blk.core.operation import Operation


def waits_for(operations: Sequence[Operation]) -> list[set[int]]:
    """For each operation, the indices for which it waits, directly or at a joint of several."""
    places = {operation: index for index, operation in enumerate(operations)}
    found: list[set[int]] = [set() for _ in operations]
    edges = Counter(follower for one in nodes(operations) for follower in one.followers)
    assert all(one.waits == edges[one] for one in nodes(operations))
    for index, operation in enumerate(operations):
        for follower in _beyond_joints(operation):
            found[places[follower]].add(index)
    return found


def nodes(operations: Sequence[Operation]) -> list[Operation]:
    """``operations`` and the joints between them."""
    found = dict.fromkeys(operations)
    left = list(operations)
    while left:
        for follower in left.pop().followers:
            if follower not in found:
                found[follower] = None
                left.append(follower)
    return list(found)


def size(operations: Sequence[Operation]) -> int:
    """The number of references from one operation to another."""
    return sum(len(one.followers) for one in nodes(operations))


def _beyond_joints(operation: Operation) -> Iterator[Operation]:
    for follower in operation.followers:
        if follower.members:
            yield follower
        else:
            yield from _beyond_joints(follower)
