"""The packed queue, device side: pops and pushes, and drivers that break the ring."""

from collections.abc import Callable

import pytest
from rings import DATA, NEXT, WRITE, packed_ring, pop_one, segments, serve

from pykvm.virtio.constants import (
    RING_EVENT_FLAGS_DESC,
    VIRTIO_F_IN_ORDER,
)
from pykvm.virtio.packed import WRAP
from pykvm.virtio.queue import BROKEN, EMPTY


def test_the_driver_sees_no_used_buffer_before_publish() -> None:
    driver, queue = packed_ring()
    driver.send([b"x"] * 3, [4])
    queue.begin_drain()
    assert queue.pop() == EMPTY
    driver.send([b"y"], [4])
    driver.publish()
    heads = [queue.pop(), queue.pop()]
    assert queue.pop() == EMPTY
    for head in reversed(heads):
        queue.push(head, 2)
        assert driver.collect() == []
    assert queue.publish()
    assert driver.collect() == [(1, 2), (0, 2)]


def test_a_list_may_wrap_at_the_end_of_the_ring() -> None:
    driver, queue = packed_ring(size=5, start=WRAP | 3)
    head = driver.send([b"a", b"bc"], [3, 4])
    chain = pop_one(driver, queue)
    assert [length for _, length in segments(chain)] == [1, 2, 3, 4]
    queue.push(chain.head, 7)
    queue.publish()
    assert driver.collect() == [(head, 7)]
    assert queue.save() == {"last_avail": 2, "used": 2, "heads": b""}


def test_a_used_descriptor_has_the_write_flag_if_bytes_were_written() -> None:
    driver, queue = packed_ring(size=2)
    driver.offer(DATA, 4, 6)
    serve(driver, queue, 0)
    driver.offer(DATA, 4, 7, WRITE)
    serve(driver, queue, 4)
    words = [driver.ram.u64[driver.desc // 8 + 2 * index + 1] for index in range(2)]
    assert words == [0x8080 << 48 | 6 << 32, (0x8080 | WRITE) << 48 | 7 << 32 | 4]


def test_a_drain_ends_even_if_the_driver_refills_the_ring() -> None:
    driver, queue = packed_ring(size=4)
    for _ in range(4):
        driver.send([b"x"], [])
    driver.publish()
    assert queue.begin_drain() == 4
    for _ in range(4):
        queue.push(queue.pop(), 0)
        queue.publish()
        driver.collect()
        driver.send([b"x"], [])
        driver.publish()
    assert queue.pop() == EMPTY
    assert queue.enable_notifications()


def test_any_buffer_id_is_accepted_and_returned() -> None:
    driver, queue = packed_ring(size=4)
    driver.ids = [0, 0xFFFF, 4, 4]
    first = driver.send([b"one"], [1])
    driver.outstanding.clear()
    driver.send([b"second"], [2])  # the same id again, though it is in flight
    driver.publish()
    queue.begin_drain()
    one, two = queue.pop(), queue.pop()
    assert (one, two) == (0, 1)
    assert queue.chains[one].readable_bytes == 3
    assert queue.chains[two].readable_bytes == 6
    queue.push(two, 2)
    queue.publish()
    assert driver.collect() == [(first, 2)]
    assert driver.send([b"third"], []) == 4
    assert pop_one(driver, queue).readable_bytes == 5
    assert queue.error == ""


def test_an_event_descriptor_counts_only_with_event_idx() -> None:
    driver, queue = packed_ring()
    driver.ram.u32[driver.avail // 4] = RING_EVENT_FLAGS_DESC << 16 | WRAP | 5
    driver.send([b"x"], [])
    queue.push(pop_one(driver, queue).head, 0)
    assert queue.publish()
    assert not queue.publish()  # nothing new


def test_a_watch_waits_for_the_next_descriptor() -> None:
    driver, queue = packed_ring(size=3, start=WRAP | 2)
    assert not queue.available()
    driver.send([b"x"], [])
    assert not queue.available()
    driver.publish()
    assert queue.available()
    pop_one(driver, queue)
    assert not queue.available()


def test_with_in_order_a_head_that_is_done_early_waits() -> None:
    driver, queue = packed_ring(features=VIRTIO_F_IN_ORDER)
    sent = [driver.send([b"x"] * 2, [1]) for _ in range(2)]
    driver.publish()
    queue.begin_drain()
    heads = [queue.pop(), queue.pop()]
    queue.push(heads[1], 1)
    assert not queue.publish()
    with pytest.raises(AssertionError):
        queue.push(heads[1], 1)
    queue.push(heads[0], 2**33)
    assert queue.publish()
    assert driver.collect() == [(sent[0], 2**32 - 1), (sent[1], 1)]
    assert queue.in_flight == 0


# -- the ring is unusable ---------------------------------------------------


def endless(size: int) -> list[list[int]]:
    return [[NEXT] * size]


def unfinished(size: int) -> list[list[int]]:
    return [[NEXT] * (size // 2 + 1)]


def overrun(size: int) -> list[list[int]]:
    return [[0] * size, [0]]


def a_list_over_what_is_in_flight(size: int) -> list[list[int]]:
    return [[0], [NEXT] * (size - 1) + [0]]


def more_than_a_list_in_flight_leaves(size: int) -> list[list[int]]:
    return [[NEXT] * (size // 2) + [0], [0] * (size - size // 2)]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("start", [WRAP, 0])
@pytest.mark.parametrize(
    "mischief",
    [
        endless,
        unfinished,
        overrun,
        a_list_over_what_is_in_flight,
        more_than_a_list_in_flight_leaves,
    ],
)
def test_a_ring_in_an_impossible_state_stays_broken(
    mischief: Callable[[int], list[list[int]]], size: int, start: int
) -> None:
    driver, queue = packed_ring(size, start=start)
    popped = []
    for flags in mischief(size):
        for flag in flags:
            driver.offer(DATA, 4, 0, flag)
        driver.publish()
        queue.begin_drain()
        while (head := queue.pop()) >= 0:
            popped.append(head)
    assert queue.error
    assert len(popped) <= size
    assert queue.pop() == BROKEN
    assert queue.begin_drain() == BROKEN
    assert not queue.enable_notifications()
    assert not queue.available()
    for head in popped:  # heads in flight can still be completed
        queue.push(head, 0)
    assert queue.publish() == bool(popped)
