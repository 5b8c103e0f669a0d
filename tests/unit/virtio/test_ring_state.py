"""Where rings may lie, and queues that are saved and restored: split and packed."""

import pytest
from rings import packed_ring, serve, split_ring

from pykvm.memory.ram import Ram
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


def test_a_saved_split_queue_continues_at_its_place() -> None:
    driver, queue = split_ring(size=4)
    for _ in range(7):
        driver.send([b"x"], [])
        serve(driver, queue, 0)
        driver.collect()
    state = queue.save()
    queue = SplitQueue(driver.ram, 0, 4, driver.desc, driver.avail, driver.used)
    assert queue.restore(state) == ""
    head = driver.send([b"x"], [])
    serve(driver, queue, 9)
    assert driver.collect() == [(head, 9)]


@pytest.mark.parametrize(
    "state",
    [{}, {"last_avail": 1}, {"last_avail": 1, "used": 2}, {"last_avail": 65536, "used": 65536}],
)
def test_an_impossible_state_of_a_split_queue_is_refused(state: dict[str, int]) -> None:
    _, queue = split_ring()
    assert queue.restore(state)
    assert queue.save() == {"last_avail": 0, "used": 0}


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


def test_a_saved_packed_queue_continues_at_its_place() -> None:
    driver, queue = packed_ring(size=3)
    for _ in range(5):
        driver.send([b"x"], [])
        serve(driver, queue, 0)
        driver.collect()
    state = queue.save()
    assert state == {"last_avail": 2, "used": 2}  # in the second round
    queue = PackedQueue(driver.ram, 0, 3, driver.desc, driver.avail, driver.used)
    assert queue.restore(state) == ""
    head = driver.send([b"x"], [1])
    serve(driver, queue, 9)
    assert driver.collect() == [(head, 9)]


@pytest.mark.parametrize(
    "state",
    [{}, {"last_avail": 1}, {"last_avail": 1, "used": 2}, {"last_avail": 8, "used": 8}],
)
def test_an_impossible_state_of_a_packed_queue_is_refused(state: dict[str, int]) -> None:
    _, queue = packed_ring(size=8)
    assert queue.restore(state)
    assert queue.save() == {"last_avail": WRAP, "used": WRAP}
