"""Descriptor chains of a split queue: well-formed and malformed ones. The ring continues."""

from collections.abc import Callable

import pytest
from rings import DATA, INDIRECT, NEXT, WRITE, pop_one, segments, split_ring

from pykvm.memory.ram import Ram
from pykvm.testing.ring_driver import Buffer
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.chain import (
    CHAIN_BAD_INDIRECT,
    CHAIN_BAD_NEXT,
    CHAIN_BAD_ORDER,
    CHAIN_ERRORS,
    CHAIN_OK,
    CHAIN_TOO_LONG,
    CHAIN_TOO_MANY_BYTES,
)
from pykvm.virtio.constants import VIRTIO_F_INDIRECT_DESC


@pytest.mark.parametrize(
    ("address", "length"),
    [(1 << 16, 1), ((1 << 16) - 4, 5), (2**64 - 1, 1), (2**64 - 2, 4), (0xFEE00000, 4)],
)
def test_a_buffer_outside_ram_is_a_segment_without_an_offset(address: int, length: int) -> None:
    driver, queue = split_ring()
    driver.add([Buffer(DATA, 8, False), Buffer(address, length, True), Buffer(DATA, 1, True)])
    chain = pop_one(driver, queue)
    assert chain.error == CHAIN_OK
    assert segments(chain) == [(DATA, 8), (-1, length), (DATA, 1)]
    assert chain.writable_bytes == length + 1


def test_a_zero_length_descriptor_is_no_segment() -> None:
    driver, queue = split_ring()
    buffers = [Buffer(DATA, 8, False), Buffer(DATA, 0, True), Buffer(DATA + 9, 1, True)]
    driver.add([*buffers, Buffer(DATA, 0, False)])
    chain = pop_one(driver, queue)
    assert segments(chain) == [(DATA, 8), (DATA + 9, 1)]
    assert chain.error == CHAIN_OK


def test_direct_descriptors_may_lead_to_a_table() -> None:
    driver, queue = split_ring(features=VIRTIO_F_INDIRECT_DESC)
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
    driver, queue = split_ring(4, VIRTIO_F_INDIRECT_DESC, ram=Ram.flat(1 << 18))
    head = driver.add([Buffer(DATA, 16, False)] + [Buffer(DATA, 512, True)] * 1025)
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable, chain.error) == (1, 1025, CHAIN_OK)
    queue.push(head, 0)
    driver.add([Buffer(DATA, 16, False)] * 1027)
    assert pop_one(driver, queue).error == CHAIN_BAD_INDIRECT


def test_a_full_direct_chain_is_as_long_as_the_queue() -> None:
    driver, queue = split_ring(size=8)
    driver.send([b"x"] * 8, [])
    assert pop_one(driver, queue).readable == 8


def test_a_chain_has_no_segments_of_an_earlier_chain() -> None:
    driver, queue = split_ring(features=VIRTIO_F_INDIRECT_DESC)
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


# -- malformed --------------------------------------------------------------


def direct(*descriptors: tuple[int, int, int, int]) -> Callable[[SplitDriver], None]:
    def write(driver: SplitDriver) -> None:
        for index, descriptor in enumerate(descriptors):
            driver.write_descriptor(index, *descriptor)

    return write


def table(
    *descriptors: tuple[int, int, int, int], length: int | None = None, flags: int = 0
) -> Callable[[SplitDriver], None]:
    def write(driver: SplitDriver) -> None:
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
    driver, queue = split_ring(features=VIRTIO_F_INDIRECT_DESC)
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
    driver, queue = split_ring(features=0)
    BAD_CHAINS["table of length 0"][0](driver)
    driver.send([b"a"], [1], indirect=True)
    assert pop_one(driver, queue).error == CHAIN_BAD_INDIRECT


def test_out_of_order_segments_are_still_sorted_and_complete() -> None:
    driver, queue = split_ring()
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
