"""Descriptor lists of a packed queue: well-formed and malformed ones. The ring continues."""

from collections.abc import Callable

import pytest
from rings import DATA, INDIRECT, NEXT, WRITE, packed_ring, pop_one, segments

from pykvm.memory.ram import Ram
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.ring_driver import Buffer
from pykvm.virtio.chain import (
    CHAIN_BAD_INDIRECT,
    CHAIN_BAD_ORDER,
    CHAIN_ERRORS,
    CHAIN_OK,
    CHAIN_TOO_MANY_BYTES,
)
from pykvm.virtio.constants import VIRTIO_F_INDIRECT_DESC


@pytest.mark.parametrize("shift", [0, 4])
def test_in_a_table_every_flag_but_write_is_ignored(shift: int) -> None:
    driver, queue = packed_ring(features=VIRTIO_F_INDIRECT_DESC)
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
    driver, queue = packed_ring(4, VIRTIO_F_INDIRECT_DESC, ram=Ram.flat(1 << 18))
    driver.add([Buffer(DATA, 16, False)] + [Buffer(DATA, 512, True)] * 1025)
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable, chain.error) == (1, 1025, CHAIN_OK)


def test_a_buffer_outside_ram_has_no_offset_and_an_empty_one_no_segment() -> None:
    driver, queue = packed_ring()
    buffers = [Buffer(DATA, 8, False), Buffer(2**64 - 2, 4, True), Buffer(DATA, 0, True)]
    driver.add([*buffers, Buffer(DATA, 1, True)])
    chain = pop_one(driver, queue)
    assert segments(chain) == [(DATA, 8), (-1, 4), (DATA, 1)]
    assert (chain.writable_bytes, chain.error) == (5, CHAIN_OK)


# -- malformed --------------------------------------------------------------


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
    driver, queue = packed_ring(features=VIRTIO_F_INDIRECT_DESC)
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
    driver, queue = packed_ring()
    driver.send([b"a"], [1], indirect=True)
    assert pop_one(driver, queue).error == CHAIN_BAD_INDIRECT
