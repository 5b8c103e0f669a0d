"""The split queue, device side: what each well-formed and malformed ring gets."""

from collections.abc import Callable

import pytest

from pykvm.memory.ram import Ram, Region
from pykvm.testing.mock_driver import Buffer, MockDriver
from pykvm.virtio.chain import (
    CHAIN_BAD_INDIRECT,
    CHAIN_BAD_NEXT,
    CHAIN_BAD_ORDER,
    CHAIN_ERRORS,
    CHAIN_OK,
    CHAIN_TOO_LONG,
    CHAIN_TOO_MANY_BYTES,
    DescriptorChain,
)
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
)
from pykvm.virtio.queue import BROKEN, EMPTY
from pykvm.virtio.split import SplitQueue

NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT
BOTH = VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC


def make(size: int = 8, features: int = 0, start: int = 0) -> tuple[MockDriver, SplitQueue]:
    driver = MockDriver(Ram.flat(1 << 16), size=size, features=features, start=start)
    return driver, driver.device_queue()


def pop_one(driver: MockDriver, queue: SplitQueue) -> DescriptorChain:
    driver.publish()
    assert queue.begin_drain() == 1
    head = queue.pop()
    assert head >= 0, queue.error
    assert queue.pop() == EMPTY
    return queue.chains[head]


def segments(chain: DescriptorChain) -> list[tuple[int, int]]:
    count = chain.readable + chain.writable
    return list(zip(chain.offsets[:count], chain.lengths[:count], strict=True))


def test_an_empty_ring_gives_nothing() -> None:
    _, queue = make()
    assert queue.pop() == EMPTY
    assert queue.begin_drain() == 0
    assert queue.pop() == EMPTY
    assert not queue.publish()
    assert queue.error == ""


@pytest.mark.parametrize("features", [0, VIRTIO_F_INDIRECT_DESC])
def test_a_chain_is_translated_readable_segments_first(features: int) -> None:
    # RAM at 1 MiB in the second half of a buffer: offsets are not addresses.
    ram = Ram(bytearray(1 << 17), [Region(1 << 20, 1 << 16, 1 << 16)])
    driver = MockDriver(ram, features=features, base=1 << 20)
    queue = driver.device_queue()
    driver.send([b"head", b"payload"], [512, 1])
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable) == (2, 2)
    assert (chain.readable_bytes, chain.writable_bytes) == (11, 513)
    assert list(chain.lengths[:4]) == [4, 7, 512, 1]
    texts = [bytes(ram.bytes[offset : offset + length]) for offset, length in segments(chain)]
    assert texts[:2] == [b"head", b"payload"]
    assert chain.error == CHAIN_OK
    assert chain.head == 0


def test_used_buffers_reach_the_driver_in_the_order_of_completion() -> None:
    driver, queue = make()
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


def test_a_drain_takes_only_what_was_there_when_it_began() -> None:
    driver, queue = make()
    driver.send([b"x"], [])
    driver.publish()
    assert queue.begin_drain() == 1
    driver.send([b"y"], [])
    driver.publish()
    assert queue.pop() >= 0
    assert queue.pop() == EMPTY
    assert queue.begin_drain() == 1


def test_a_head_pushed_twice_is_a_bug() -> None:
    driver, queue = make()
    driver.send([b"x"], [])
    head = pop_one(driver, queue).head
    queue.push(head, 0)
    with pytest.raises(AssertionError):
        queue.push(head, 0)


# -- the ring is unusable ---------------------------------------------------


def jump(driver: MockDriver) -> None:
    driver.avail_index += driver.size + 1


def backwards(driver: MockDriver) -> None:
    driver.avail_index -= 1


def bad_head(driver: MockDriver) -> None:
    driver.offer(driver.size)


def huge_head(driver: MockDriver) -> None:
    driver.offer(0xFFFF)


@pytest.mark.parametrize("mischief", [jump, backwards, bad_head, huge_head])
def test_a_ring_in_an_impossible_state_is_broken_for_good(
    mischief: Callable[[MockDriver], None],
) -> None:
    driver, queue = make()
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
    driver, queue = make()
    head = driver.send([b"x"], [])
    driver.offer(head)
    driver.publish()
    queue.begin_drain()
    assert queue.pop() == head
    assert queue.pop() == BROKEN
    assert "in use" in queue.error
    queue.push(head, 0)  # what is in flight can still be completed
    assert queue.publish()


def test_more_heads_than_descriptors_break_the_ring() -> None:
    driver, queue = make(size=4)
    for _ in range(4):
        driver.send([b"x"], [])
    driver.publish()
    assert queue.begin_drain() == 4
    assert [queue.pop() for _ in range(4)] == [0, 1, 2, 3]
    driver.avail_index += 1
    driver.publish()
    assert queue.begin_drain() == BROKEN


# -- the chain is malformed, the ring goes on --------------------------------

DATA = 0x8000


def direct(*descriptors: tuple[int, int, int, int]) -> Callable[[MockDriver], None]:
    def write(driver: MockDriver) -> None:
        for index, descriptor in enumerate(descriptors):
            driver.write_descriptor(index, *descriptor)

    return write


def table(
    *descriptors: tuple[int, int, int, int], length: int | None = None, flags: int = 0
) -> Callable[[MockDriver], None]:
    def write(driver: MockDriver) -> None:
        at = driver.alloc(16 * max(len(descriptors), 1))
        for index, (address, size, flag, following) in enumerate(descriptors):
            packed = address.to_bytes(8, "little") + size.to_bytes(4, "little")
            packed += flag.to_bytes(2, "little") + following.to_bytes(2, "little")
            driver.ram.write(at + 16 * index, packed)
        size = 16 * len(descriptors) if length is None else length
        driver.write_descriptor(0, at, size, INDIRECT | flags, 1)

    return write


BAD_CHAINS = {
    "next out of range": (direct((DATA, 4, NEXT, 8)), CHAIN_BAD_NEXT),
    "a loop of one": (direct((DATA, 4, NEXT, 0)), CHAIN_TOO_LONG),
    "a loop of two": (direct((DATA, 4, NEXT, 1), (DATA, 4, NEXT, 0)), CHAIN_TOO_LONG),
    "a loop of zero-length descriptors": (direct((DATA, 0, NEXT, 0)), CHAIN_TOO_LONG),
    "readable after writable": (
        direct((DATA, 4, NEXT | WRITE, 1), (DATA, 5, 0, 0)),
        CHAIN_BAD_ORDER,
    ),
    "over 2^32 bytes": (
        direct((DATA, 0xFFFFFFFF, NEXT, 1), (DATA, 2, 0, 0)),
        CHAIN_TOO_MANY_BYTES,
    ),
    "table of length 0": (table((DATA, 4, 0, 0), length=0), CHAIN_BAD_INDIRECT),
    "table of 15 bytes": (table((DATA, 4, 0, 0), length=15), CHAIN_BAD_INDIRECT),
    "table of 17 bytes": (table((DATA, 4, 0, 0), length=17), CHAIN_BAD_INDIRECT),
    "huge table": (table((DATA, 4, 0, 0), length=16 * 1027), CHAIN_BAD_INDIRECT),
    "table outside RAM": (direct((1 << 40, 16, INDIRECT, 0)), CHAIN_BAD_INDIRECT),
    "table wraps": (direct((2**64 - 8, 16, INDIRECT, 0)), CHAIN_BAD_INDIRECT),
    "table with NEXT": (table((DATA, 4, 0, 0), flags=NEXT), CHAIN_BAD_INDIRECT),
    "nested table": (table((DATA, 16, INDIRECT, 0)), CHAIN_BAD_INDIRECT),
    "next out of the table": (table((DATA, 4, NEXT, 2), (DATA, 4, 0, 0)), CHAIN_BAD_NEXT),
    "a loop in the table": (table((DATA, 4, NEXT, 1), (DATA, 4, NEXT, 0)), CHAIN_TOO_LONG),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_malformed_chain_is_an_error_of_that_chain_only(name: str) -> None:
    build, error = BAD_CHAINS[name]
    driver, queue = make(features=VIRTIO_F_INDIRECT_DESC)
    build(driver)
    driver.offer(0)
    chain = pop_one(driver, queue)
    assert chain.error == error, CHAIN_ERRORS[chain.error]
    if error in (CHAIN_BAD_ORDER, CHAIN_TOO_MANY_BYTES):
        assert chain.readable + chain.writable == 2
    else:
        assert (chain.readable, chain.writable, chain.readable_bytes, chain.writable_bytes) == (
            (0,) * 4
        )
    queue.push(0, 0)
    assert queue.error == ""
    driver.write_descriptor(0, DATA, 4, 0, 0)
    driver.offer(0)
    assert pop_one(driver, queue).error == CHAIN_OK


def test_a_table_needs_the_feature() -> None:
    driver, queue = make(features=0)
    BAD_CHAINS["table of length 0"][0](driver)
    driver.send([b"a"], [1], indirect=True)
    assert pop_one(driver, queue).error == CHAIN_BAD_INDIRECT


def test_out_of_order_segments_are_still_sorted_and_complete() -> None:
    driver, queue = make()
    flags = [WRITE, 0, WRITE, 0, WRITE]
    for index, flag in enumerate(flags):
        more = NEXT if index < 4 else 0
        driver.write_descriptor(index, DATA + index, index + 1, flag | more, index + 1)
    driver.offer(0)
    chain = pop_one(driver, queue)
    assert chain.error == CHAIN_BAD_ORDER
    assert (chain.readable, chain.writable) == (2, 3)
    assert list(chain.lengths[:5]) == [2, 4, 1, 3, 5]
    assert list(chain.offsets[:5]) == [DATA + 1, DATA + 3, DATA, DATA + 2, DATA + 4]
    assert (chain.readable_bytes, chain.writable_bytes) == (6, 9)


@pytest.mark.parametrize(
    ("address", "length"),
    [(1 << 16, 1), ((1 << 16) - 4, 5), (2**64 - 1, 1), (2**64 - 2, 4), (0xFEE00000, 4)],
)
def test_a_buffer_outside_ram_is_a_segment_without_an_offset(address: int, length: int) -> None:
    driver, queue = make()
    driver.add([Buffer(DATA, 8, False), Buffer(address, length, True), Buffer(DATA, 1, True)])
    chain = pop_one(driver, queue)
    assert chain.error == CHAIN_OK
    assert segments(chain) == [(DATA, 8), (-1, length), (DATA, 1)]
    assert chain.writable_bytes == length + 1


def test_a_zero_length_descriptor_is_no_segment() -> None:
    driver, queue = make()
    buffers = [Buffer(DATA, 8, False), Buffer(DATA, 0, True), Buffer(DATA + 9, 1, True)]
    driver.add([*buffers, Buffer(DATA, 0, False)])
    chain = pop_one(driver, queue)
    assert segments(chain) == [(DATA, 8), (DATA + 9, 1)]
    assert chain.error == CHAIN_OK


def test_direct_descriptors_may_lead_to_a_table() -> None:
    driver, queue = make(features=VIRTIO_F_INDIRECT_DESC)
    driver.write_descriptor(3, DATA, 16, NEXT, 5)
    at = driver.put(
        b"".join(
            (DATA + 16 * i).to_bytes(8, "little") + bytes([16, 0, 0, 0, WRITE | (i < 1), 0, 1, 0])
            for i in range(2)
        )
    )
    driver.write_descriptor(5, at, 32, INDIRECT | WRITE, 0)
    driver.offer(3)
    chain = pop_one(driver, queue)
    assert segments(chain) == [(DATA, 16), (DATA, 16), (DATA + 16, 16)]
    assert (chain.readable, chain.writable) == (1, 2)


def test_a_table_may_be_longer_than_the_queue_but_not_without_limit() -> None:
    ram = Ram.flat(1 << 18)
    driver = MockDriver(ram, size=4, features=VIRTIO_F_INDIRECT_DESC)
    queue = driver.device_queue()
    head = driver.add([Buffer(DATA, 16, False)] + [Buffer(DATA, 512, True)] * 1025)
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable, chain.error) == (1, 1025, CHAIN_OK)
    queue.push(head, 0)
    driver.add([Buffer(DATA, 16, False)] * 1027)
    assert pop_one(driver, queue).error == CHAIN_BAD_INDIRECT


def test_a_full_direct_chain_is_as_long_as_the_queue() -> None:
    driver, queue = make(size=8)
    driver.send([b"x"] * 8, [])
    assert pop_one(driver, queue).readable == 8


def test_chains_do_not_inherit_from_the_previous_use_of_their_head() -> None:
    driver, queue = make(features=VIRTIO_F_INDIRECT_DESC)
    head = driver.send([b"x"] * 6, [1] * 6)
    chain = pop_one(driver, queue)
    assert chain.readable + chain.writable == 12
    queue.push(head, 0)
    queue.publish()
    driver.collect()
    assert driver.send([b"abc"], []) == head
    again = pop_one(driver, queue)
    assert again is chain
    assert (again.readable, again.writable, again.readable_bytes) == (1, 0, 3)


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


def test_event_idx_suppresses_what_was_not_asked_for() -> None:
    driver, queue = make(features=VIRTIO_F_EVENT_IDX)
    for _ in range(4):
        driver.send([b"x"], [])
    driver.enable_interrupts(after=2)  # at the third used buffer
    assert driver.publish()
    queue.begin_drain()
    asked = []
    while (head := queue.pop()) >= 0:
        queue.push(head, 0)
        asked.append(queue.publish())
    assert asked == [False, False, True, False]
    assert not queue.enable_notifications()


def test_publishing_nothing_new_never_interrupts() -> None:
    driver, queue = make()
    driver.send([b"x"], [])
    queue.push(pop_one(driver, queue).head, 0)
    assert queue.publish()
    assert not queue.publish()


@pytest.mark.parametrize("features", [0, VIRTIO_F_EVENT_IDX])
def test_the_fence_lies_between_the_store_and_the_load(features: int) -> None:
    """The other side acts inside the fence: whoever reads before it would miss that."""
    driver, _ = make(features=features)
    acts: list[Callable[[], object]] = []

    def fence() -> None:
        acts.pop()()

    queue = driver.device_queue(fence=fence)
    driver.enable_interrupts(after=5)
    driver.disable_interrupts()
    driver.send([b"x"], [])
    driver.publish()
    queue.begin_drain()
    queue.push(queue.pop(), 0)

    seen: list[bool] = []
    acts.append(lambda: seen.append(driver.enable_interrupts()))
    assert queue.publish()  # used_event or the flag is read after the fence
    assert seen == [True]  # and used.idx was written before it

    driver.collect()
    queue.disable_notifications()
    driver.send([b"y"], [])
    acts.append(lambda: seen.append(driver.publish()))
    assert queue.enable_notifications()  # avail.idx is read after the fence
    assert seen[-1]  # and avail_event or the flag was written before it
