"""The packed queue, device side: what each well-formed and malformed ring gets.

What it has in common with the split queue is tested in test_ring_model.py and,
as part of a device, with both.
"""

from collections.abc import Callable

import pytest

from pykvm.memory.ram import Ram, Region
from pykvm.testing.mock_packed import PackedDriver
from pykvm.testing.ring_driver import Buffer
from pykvm.virtio.chain import (
    CHAIN_BAD_INDIRECT,
    CHAIN_BAD_ORDER,
    CHAIN_ERRORS,
    CHAIN_OK,
    CHAIN_TOO_MANY_BYTES,
    DescriptorChain,
)
from pykvm.virtio.constants import (
    RING_EVENT_FLAGS_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
)
from pykvm.virtio.packed import WRAP, PackedQueue
from pykvm.virtio.queue import BROKEN, EMPTY

NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT
DATA = 0x8000


def make(size: int = 8, features: int = 0, start: int = WRAP) -> tuple[PackedDriver, PackedQueue]:
    driver = PackedDriver(Ram.flat(1 << 16), size=size, features=features, start=start)
    return driver, driver.device_queue()


def pop_one(driver: PackedDriver, queue: PackedQueue) -> DescriptorChain:
    driver.publish()
    assert queue.begin_drain() >= 1
    head = queue.pop()
    assert head >= 0, queue.error
    assert queue.pop() == EMPTY
    return queue.chains[head]


def serve(driver: PackedDriver, queue: PackedQueue, length: int = 0) -> None:
    """Use whatever is available."""
    driver.publish()
    queue.begin_drain()
    while (head := queue.pop()) >= 0:
        queue.push(head, length)
    queue.publish()


def segments(chain: DescriptorChain) -> list[tuple[int, int]]:
    count = chain.readable + chain.writable
    return list(zip(chain.offsets[:count], chain.lengths[:count], strict=True))


@pytest.mark.parametrize("features", [0, VIRTIO_F_INDIRECT_DESC])
def test_a_chain_is_translated_readable_segments_first(features: int) -> None:
    ram = Ram(bytearray(1 << 17), [Region(1 << 20, 1 << 16, 1 << 16)])
    driver = PackedDriver(ram, features=features, base=1 << 20)
    queue = driver.device_queue()
    driver.send([b"head", b"payload"], [512, 1])
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable) == (2, 2)
    assert (chain.readable_bytes, chain.writable_bytes) == (11, 513)
    assert [length for _, length in segments(chain)] == [4, 7, 512, 1]
    texts = [bytes(ram.bytes[offset : offset + length]) for offset, length in segments(chain)]
    assert texts[:2] == [b"head", b"payload"]
    assert chain.error == CHAIN_OK


def test_nothing_is_seen_before_it_is_published() -> None:
    driver, queue = make()
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


def test_a_list_may_go_round_the_end_of_the_ring() -> None:
    driver, queue = make(size=5, start=WRAP | 3)
    head = driver.send([b"a", b"bc"], [3, 4])
    chain = pop_one(driver, queue)
    assert [length for _, length in segments(chain)] == [1, 2, 3, 4]
    queue.push(chain.head, 7)
    queue.publish()
    assert driver.collect() == [(head, 7)]
    assert queue.save() == {"last_avail": 2, "used": 2}


def test_a_used_descriptor_says_whether_anything_was_written() -> None:
    driver, queue = make(size=2)
    driver.offer(DATA, 4, 6)
    serve(driver, queue, 0)
    driver.offer(DATA, 4, 7, WRITE)
    serve(driver, queue, 4)
    words = [driver.ram.u64[driver.desc // 8 + 2 * index + 1] for index in range(2)]
    assert words == [0x8080 << 48 | 6 << 32, (0x8080 | WRITE) << 48 | 7 << 32 | 4]


def test_a_drain_ends_though_the_driver_refills_the_ring() -> None:
    driver, queue = make(size=4)
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


def test_a_buffer_id_is_the_drivers_business() -> None:
    driver, queue = make(size=4)
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
def test_a_ring_in_an_impossible_state_is_broken_for_good(
    mischief: Callable[[int], list[list[int]]], size: int, start: int
) -> None:
    driver, queue = make(size, start=start)
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
    assert not queue.await_available(1000)
    for head in popped:  # what is in flight can still be completed
        queue.push(head, 0)
    assert queue.publish() == bool(popped)


# -- the chain is malformed, the ring goes on --------------------------------


def direct(*descriptors: tuple[int, int, int]) -> Callable[[PackedDriver], None]:
    def offer(driver: PackedDriver) -> None:
        for address, length, flags in descriptors:
            driver.offer(address, length, 7, flags)

    return offer


BAD_CHAINS = {
    "readable after writable": (
        direct((DATA, 4, NEXT | WRITE), (DATA, 5, 0)),
        CHAIN_BAD_ORDER,
    ),
    "over 2^32 bytes": (
        direct((DATA, 0xFFFFFFFF, NEXT), (DATA, 2, 0)),
        CHAIN_TOO_MANY_BYTES,
    ),
    "table of length 0": (direct((DATA, 0, INDIRECT)), CHAIN_BAD_INDIRECT),
    "table of 15 bytes": (direct((DATA, 15, INDIRECT)), CHAIN_BAD_INDIRECT),
    "table of 17 bytes": (direct((DATA, 17, INDIRECT)), CHAIN_BAD_INDIRECT),
    "huge table": (direct((0, 16 * 1027, INDIRECT)), CHAIN_BAD_INDIRECT),
    "table outside RAM": (direct((1 << 40, 16, INDIRECT)), CHAIN_BAD_INDIRECT),
    "table wraps": (direct((2**64 - 8, 16, INDIRECT)), CHAIN_BAD_INDIRECT),
    "table with NEXT": (direct((DATA, 16, INDIRECT | NEXT), (DATA, 4, 0)), CHAIN_BAD_INDIRECT),
    "table at the end of a list": (
        direct((DATA, 4, NEXT), (DATA, 16, INDIRECT)),
        CHAIN_BAD_INDIRECT,
    ),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_malformed_chain_is_an_error_of_that_chain_only(name: str) -> None:
    offer, error = BAD_CHAINS[name]
    driver, queue = make(features=VIRTIO_F_INDIRECT_DESC)
    offer(driver)
    chain = pop_one(driver, queue)
    assert chain.error == error, CHAIN_ERRORS[chain.error]
    if error == CHAIN_BAD_INDIRECT:
        assert (chain.readable, chain.writable, chain.readable_bytes, chain.writable_bytes) == (
            (0,) * 4
        )
    else:
        assert chain.readable + chain.writable == 2
    queue.push(chain.head, 0)
    queue.publish()
    assert queue.error == ""
    driver.send([b"abc"], [])
    assert segments(pop_one(driver, queue))[0][1] == 3


def test_a_table_needs_the_feature() -> None:
    driver, queue = make()
    driver.send([b"a"], [1], indirect=True)
    assert pop_one(driver, queue).error == CHAIN_BAD_INDIRECT


@pytest.mark.parametrize("shift", [0, 4])
def test_in_a_table_only_write_means_anything(shift: int) -> None:
    driver, queue = make(features=VIRTIO_F_INDIRECT_DESC)
    entries = [(DATA, 16, 0xFFFF & ~WRITE), (DATA + 16, 4, WRITE), (DATA + 32, 1, 0xFFFF)]
    table = b"".join(
        address.to_bytes(8, "little")
        + length.to_bytes(4, "little")
        + b"\xff\xff"
        + flags.to_bytes(2, "little")
        for address, length, flags in entries
    )
    at = driver.put(bytes(shift) + table) + shift
    driver.offer(at, len(table), 3, INDIRECT | WRITE)
    chain = pop_one(driver, queue)
    assert segments(chain) == [(DATA, 16), (DATA + 16, 4), (DATA + 32, 1)]
    assert (chain.readable, chain.writable, chain.error) == (1, 2, CHAIN_OK)


def test_a_table_may_be_longer_than_the_queue() -> None:
    driver = PackedDriver(Ram.flat(1 << 18), size=4, features=VIRTIO_F_INDIRECT_DESC)
    queue = driver.device_queue()
    driver.add([Buffer(DATA, 16, False)] + [Buffer(DATA, 512, True)] * 1025)
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable, chain.error) == (1, 1025, CHAIN_OK)


def test_buffers_outside_ram_and_empty_ones() -> None:
    driver, queue = make()
    buffers = [Buffer(DATA, 8, False), Buffer(2**64 - 2, 4, True), Buffer(DATA, 0, True)]
    driver.add([*buffers, Buffer(DATA, 1, True)])
    chain = pop_one(driver, queue)
    assert segments(chain) == [(DATA, 8), (-1, 4), (DATA, 1)]
    assert (chain.writable_bytes, chain.error) == (5, CHAIN_OK)


# -- notifications and interrupts ---------------------------------------------


def test_without_event_idx_flags_decide() -> None:
    driver, queue = make()
    queue.disable_notifications()
    head = driver.send([b"x"], [])
    assert not driver.publish()
    assert queue.enable_notifications()
    queue.begin_drain()
    queue.push(queue.pop(), 0)
    driver.disable_interrupts()
    assert not queue.publish()
    assert not queue.enable_notifications()
    assert driver.collect() == [(head, 0)]
    driver.send([b"x"], [])
    assert driver.publish()
    queue.begin_drain()
    queue.push(queue.pop(), 0)
    driver.enable_interrupts()
    assert queue.publish()


@pytest.mark.parametrize("start", [WRAP, WRAP | 2, 0, 2])
def test_event_idx_suppresses_what_was_not_asked_for(start: int) -> None:
    driver, queue = make(4, VIRTIO_F_EVENT_IDX, start)
    for _ in range(4):
        driver.send([b"x"], [])
    driver.enable_interrupts(after=2)  # at the third used descriptor
    assert driver.publish()
    queue.begin_drain()
    asked = []
    while (head := queue.pop()) >= 0:
        queue.push(head, 0)
        asked.append(queue.publish())
    assert asked == [False, False, True, False]
    assert not queue.enable_notifications()


def test_a_specific_descriptor_can_be_asked_for_only_with_event_idx() -> None:
    driver, queue = make()
    driver.ram.u32[driver.avail // 4] = RING_EVENT_FLAGS_DESC << 16 | WRAP | 5
    driver.send([b"x"], [])
    queue.push(pop_one(driver, queue).head, 0)
    assert queue.publish()
    assert not queue.publish()  # nothing new


@pytest.mark.parametrize("features", [0, VIRTIO_F_EVENT_IDX])
def test_the_fence_lies_between_the_store_and_the_load(features: int) -> None:
    """The other side acts inside the fence: whoever reads before it would miss that."""
    driver, _ = make(features=features)
    acts: list[Callable[[], object]] = []
    queue = driver.device_queue(fence=lambda: acts.pop()() and None)
    driver.disable_interrupts()
    driver.send([b"x"], [])
    driver.publish()
    queue.begin_drain()
    queue.push(queue.pop(), 0)

    seen: list[bool] = []
    acts.append(lambda: seen.append(driver.enable_interrupts()))
    assert queue.publish()  # what the driver wants is read after the fence
    assert seen == [True]  # and the used descriptor was written before it

    driver.collect()
    queue.disable_notifications()
    driver.send([b"y"], [])
    acts.append(lambda: seen.append(driver.publish()))
    assert queue.enable_notifications()  # the next descriptor is read after the fence
    assert seen[-1]  # and what the device wants was written before it


def test_more_is_awaited_where_the_next_descriptor_will_be() -> None:
    driver, queue = make(size=3, start=WRAP | 2)
    assert not queue.await_available(1000)
    driver.send([b"x"], [])
    assert not queue.await_available(1000)
    driver.publish()
    assert queue.await_available(1000)
    pop_one(driver, queue)
    assert not queue.await_available(1000)


def test_with_in_order_what_is_done_early_waits() -> None:
    driver, queue = make(features=VIRTIO_F_IN_ORDER)
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
