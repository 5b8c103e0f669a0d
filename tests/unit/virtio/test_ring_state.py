"""Where rings may lie, and queues that are saved and restored: split and packed."""

from collections.abc import Callable

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rings import Driver, Queue, packed_ring, serve, split_ring
from saved_states import damages

from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved, SnapshotError
from pykvm.virtio.constants import VIRTIO_F_IN_ORDER
from pykvm.virtio.geometry import packed_ring_error, ring_error
from pykvm.virtio.packed import WRAP, PackedQueue
from pykvm.virtio.split import SplitQueue

# -- split ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used", "word"),
    [
        (0, 0, 0x1000, 0x2000, "size"),
        (3, 0, 0x1000, 0x2000, "size"),
        (65536, 0, 0x1000, 0x2000, "size"),
        (8, 8, 0x1000, 0x2000, "descriptor table"),
        (8, 0, 0x1001, 0x2000, "available"),
        (8, 0, 0x1000, 0x2002, "used"),
        (8, 0xFFF0, 0x1000, 0x2000, "descriptor table"),
        (8, 0, 1 << 63, 0x2000, "available"),
        (8, 0, 0x1000, 0xFFC0, "used"),
        (8, 2**64 - 16, 0x1000, 0x2000, "descriptor table"),
    ],
)
def test_an_impossible_split_geometry_is_named(
    size: int, desc: int, avail: int, used: int, word: str
) -> None:
    ram = Ram.flat(1 << 16)
    assert word in ring_error(ram, size, desc, avail, used)
    with pytest.raises(ValueError, match=word):
        SplitQueue(ram, 0, size, desc, avail, used)


def test_split_rings_that_just_fit_are_accepted() -> None:
    ram = Ram.flat(1 << 16)
    assert ring_error(ram, 8, (1 << 16) - 128, 0, 0x1000) == ""
    assert ring_error(ram, 8, 0, (1 << 16) - 22, 0x1000) == ""
    assert ring_error(ram, 8, 0, 0x1000, (1 << 16) - 72) == ""


# -- packed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "desc", "driver", "device", "word"),
    [
        (0, 0, 0x1000, 0x2000, "size"),
        (32769, 0, 0x1000, 0x2000, "size"),
        (8, 8, 0x1000, 0x2000, "descriptor ring"),
        (8, 0, 0x1002, 0x2000, "driver event"),
        (8, 0, 0x1000, 0x2002, "device event"),
        (8, 0xFFF0, 0x1000, 0x2000, "descriptor ring"),
        (8, 0, 1 << 16, 0x2000, "driver event"),
        (8, 0, 0x1000, 2**64 - 4, "device event"),
    ],
)
def test_an_impossible_packed_geometry_is_named(
    size: int, desc: int, driver: int, device: int, word: str
) -> None:
    ram = Ram.flat(1 << 16)
    assert word in packed_ring_error(ram, size, desc, driver, device)
    with pytest.raises(ValueError, match=word):
        PackedQueue(ram, 0, size, desc, driver, device)


def test_a_packed_ring_that_just_fits_is_accepted() -> None:
    ram = Ram.flat(1 << 16)
    assert packed_ring_error(ram, 7, (1 << 16) - 112, 0, 4) == ""
    assert packed_ring_error(ram, 7, 0, (1 << 16) - 4, (1 << 16) - 8) == ""


# -- saved and restored -----------------------------------------------------------


def again(queue: Queue, driver: Driver, state: Fields) -> Queue:
    """A new queue for ``driver`` that goes on with ``state``."""
    made = type(queue)(
        driver.ram, 0, driver.size, driver.desc, driver.avail, driver.used, driver.features
    )
    made.load(Saved("queue", state))
    return made


@pytest.mark.parametrize("ring", [split_ring, packed_ring])
def test_a_saved_queue_continues_at_its_place(ring: Callable[..., tuple[Driver, Queue]]) -> None:
    driver, queue = ring(size=4)
    for _ in range(7):
        driver.send([b"x"], [])
        serve(driver, queue, 0)
        driver.collect()
    queue = again(queue, driver, queue.save())
    head = driver.send([b"x"], [])
    serve(driver, queue, 9)
    assert driver.collect() == [(head, 9)]


@pytest.mark.parametrize("ring", [split_ring, packed_ring])
@pytest.mark.parametrize("features", [0, VIRTIO_F_IN_ORDER])
def test_heads_in_flight_are_pushed_by_the_restored_queue(
    ring: Callable[..., tuple[Driver, Queue]], features: int
) -> None:
    driver, queue = ring(size=4, features=features)
    sent = [driver.send([b"x"], []) for _ in range(3)]
    driver.publish()
    queue.begin_drain()
    popped = [queue.pop() for _ in sent]
    queue.push(popped[1], 8, True)
    queue.publish()
    queue = again(queue, driver, queue.save())
    assert queue.waiting() == {popped[0], popped[2]}
    queue.push(popped[2], 9)
    queue.push(popped[0], 7)
    assert queue.publish()
    assert sorted(driver.collect(), key=lambda used: used[1]) == list(
        zip(sent, [7, 8, 9], strict=True)
    )
    assert queue.in_flight == 0
    assert queue.waiting() == frozenset()


HEAD = bytes.fromhex("0000 00 00 00000000 0000 0100")
DONE = bytes.fromhex("0000 01 00 00000000 0000 0100")
OTHER = bytes.fromhex("0100 00 00 00000000 0000 0100")


@pytest.mark.parametrize("ring", [split_ring, packed_ring])
@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "last_avail is missing"),
        ({"last_avail": 1, "used": 2, "heads": b""}, "0 (heads|descriptors) are in flight"),
        ({"last_avail": 65536, "used": 65536, "heads": b""}, "last_avail is 65536"),
        ({"last_avail": 1, "used": 0, "heads": HEAD[:-1]}, "ends within a head"),
        ({"last_avail": 1, "used": 0, "heads": b"\x08" + HEAD[1:]}, "a queue of 8 cannot have"),
        ({"last_avail": 1, "used": 0, "heads": DONE}, "not in flight"),
        ({"last_avail": 2, "used": 0, "heads": HEAD + HEAD}, "twice"),
        ({"last_avail": 2, "used": 0, "heads": OTHER + DONE}, "not in flight"),
        ({"last_avail": 3, "used": 0, "heads": HEAD + OTHER}, "2 .* in flight from 0 to 3"),
        ({"last_avail": 0, "used": 0, "heads": b"", "more": 1}, "more means nothing"),
    ],
)
def test_an_impossible_state_of_a_queue_is_refused(
    ring: Callable[..., tuple[Driver, Queue]], state: Fields, words: str
) -> None:
    driver, queue = ring()
    with pytest.raises(SnapshotError, match=words):
        again(queue, driver, state)


@pytest.mark.parametrize(
    "state",
    [
        {"last_avail": 8, "used": 8, "heads": b""},
        {"last_avail": WRAP, "used": 0, "heads": b""},
        {"last_avail": 1, "used": 0, "heads": HEAD[:-2] + b"\0\0"},
        {"last_avail": 1, "used": WRAP, "heads": HEAD[:-2] + b"\x09\0"},
    ],
)
def test_an_impossible_place_in_a_packed_ring_is_refused(state: Fields) -> None:
    driver, queue = packed_ring(size=8)
    with pytest.raises(SnapshotError, match=r"ring of 8|in flight|without"):
        again(queue, driver, state)


@settings(max_examples=examples(100), deadline=None)
@given(
    data=damages(),
    packed=st.booleans(),
    in_order=st.sampled_from([0, VIRTIO_F_IN_ORDER]),
    count=st.integers(0, 8),
    pushed=st.integers(0, 8),
)
def test_a_damaged_queue_is_refused_or_works(
    data: Callable[[Fields], Fields], packed: bool, in_order: int, count: int, pushed: int
) -> None:
    driver, queue = (packed_ring if packed else split_ring)(features=in_order)
    for _ in range(count):
        driver.send([b"x"], [])
    driver.publish()
    queue.begin_drain()
    for head in [queue.pop() for _ in range(count)][:pushed]:
        queue.push(head, 1)
    queue.publish()
    try:
        other = again(queue, driver, data(queue.save()))
    except SnapshotError:
        return
    for head in sorted(other.waiting()):
        other.push(head, 1)
    other.publish()
    assert other.in_flight == 0
    other.begin_drain()
    assert other.pop() < driver.size
