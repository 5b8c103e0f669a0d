"""The split queue, device side: pops and pushes, and drivers that break the ring."""

from collections.abc import Callable

import pytest
from rings import pop_one, split_ring

from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.queue import BROKEN, EMPTY


def test_an_empty_ring_has_no_head() -> None:
    _, queue = split_ring()
    assert queue.pop() == EMPTY
    assert queue.begin_drain() == 0
    assert queue.pop() == EMPTY
    assert not queue.publish()
    assert queue.error == ""


def test_used_buffers_reach_the_driver_in_the_order_of_completion() -> None:
    driver, queue = split_ring()
    heads = [driver.send([b"x"], [4]) for _ in range(3)]
    driver.publish()
    assert queue.begin_drain() == 3
    assert [queue.pop() for _ in range(3)] == heads
    assert queue.in_flight == 3
    for length, head in enumerate(reversed(heads)):
        queue.push(head, length)
    assert driver.collect() == []
    assert queue.publish()
    assert driver.collect() == [(heads[2], 0), (heads[1], 1), (heads[0], 2)]
    assert queue.in_flight == 0


def test_a_drain_takes_only_heads_that_were_available_when_it_began() -> None:
    driver, queue = split_ring()
    driver.send([b"x"], [])
    driver.publish()
    assert queue.begin_drain() == 1
    driver.send([b"y"], [])
    driver.publish()
    assert queue.pop() >= 0
    assert queue.pop() == EMPTY
    assert queue.begin_drain() == 1


def test_a_head_pushed_twice_is_a_bug() -> None:
    driver, queue = split_ring()
    driver.send([b"x"], [])
    head = pop_one(driver, queue).head
    queue.push(head, 0)
    with pytest.raises(AssertionError):
        queue.push(head, 0)


def test_publishing_nothing_new_never_interrupts() -> None:
    driver, queue = split_ring()
    driver.send([b"x"], [])
    queue.push(pop_one(driver, queue).head, 0)
    assert queue.publish()
    assert not queue.publish()


# -- the ring is unusable ---------------------------------------------------


def jump(driver: SplitDriver) -> None:
    driver.avail_index += driver.size + 1


def backwards(driver: SplitDriver) -> None:
    driver.avail_index -= 1


def bad_head(driver: SplitDriver) -> None:
    driver.offer(driver.size)


def huge_head(driver: SplitDriver) -> None:
    driver.offer(0xFFFF)


@pytest.mark.parametrize("mischief", [jump, backwards, bad_head, huge_head])
def test_a_ring_in_an_impossible_state_stays_broken(
    mischief: Callable[[SplitDriver], None],
) -> None:
    driver, queue = split_ring()
    mischief(driver)
    driver.publish()
    if queue.begin_drain() != BROKEN:
        assert queue.pop() == BROKEN
    assert queue.error
    driver.avail_index = 0
    driver.publish()
    assert queue.pop() == BROKEN
    assert queue.begin_drain() == BROKEN
    assert not queue.enable_notifications()


def test_the_same_head_twice_while_in_flight_breaks_the_ring() -> None:
    driver, queue = split_ring()
    head = driver.send([b"x"], [])
    driver.offer(head)
    driver.publish()
    queue.begin_drain()
    assert queue.pop() == head
    assert queue.pop() == BROKEN
    assert "in use" in queue.error
    queue.push(head, 0)  # heads in flight can still be completed
    assert queue.publish()


def test_more_heads_than_descriptors_break_the_ring() -> None:
    driver, queue = split_ring(size=4)
    for _ in range(4):
        driver.send([b"x"], [])
    driver.publish()
    assert queue.begin_drain() == 4
    assert [queue.pop() for _ in range(4)] == [0, 1, 2, 3]
    driver.avail_index += 1
    driver.publish()
    assert queue.begin_drain() == BROKEN
