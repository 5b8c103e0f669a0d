"""The soak of Linux guests notices each fault of a disk or of a guest's memory."""

import zlib
from struct import pack

import pytest

from soak.linux.ledger import (
    BLOCK,
    BLOCKS,
    DISK_BYTES,
    MAGIC,
    SECTOR,
    WORKERS,
    Ledger,
    LedgerError,
    find_pages,
)

NONCE = 0x1234_5678_9ABC


def page(worker: int, *, calls: int = 7, error: int = 0, started: int = 0, done: int = 0) -> bytes:
    """A worker's page; ``started`` and ``done`` are those of its first block."""
    head = pack("<8s7Q", MAGIC, NONCE, worker, error, 3, 2, 1, calls)
    rest = bytes(4 * (BLOCKS - 1))
    return (head + pack("<I", started) + rest + pack("<I", done) + rest).ljust(4096, b"\0")


def ledger(**first: int) -> Ledger:
    """The ledger in which the first worker has these values."""
    pages = [page(0, **first), *(page(worker) for worker in range(1, WORKERS))]
    return Ledger.read(NONCE, pages)


def disk(*generations: int, nonce: int = NONCE, block: int = 0, broken: bool = False) -> bytes:
    """A disk whose first sectors have these generations."""
    content = bytearray(DISK_BYTES)
    for place in range(BLOCK // SECTOR):
        generation = generations[min(place, len(generations) - 1)]
        if generation:
            sector = pack("<QIIQ", nonce, block, generation, place).ljust(SECTOR - 4, b"x")
            whole = sector + zlib.crc32(sector).to_bytes(4, "little")
            content[place * SECTOR : place * SECTOR + SECTOR] = whole
    if broken:
        content[100] ^= 1
    return bytes(content)


@pytest.mark.parametrize("generations", [(5,), (6,), (7,), (5, 7), (7, 5, 6)])
def test_a_sector_may_hold_any_generation_that_is_not_answered(generations: tuple[int, ...]):
    ledger(started=7, done=5).check_disk(disk(*generations))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (disk(4), "generation 4 is on the disk; 5 was answered, 7 asked for"),
        (disk(8), "generation 8 is on the disk"),
        (disk(0), "generation 0 is on the disk"),
        (disk(6, 4), "sector 1: generation 4"),
        (disk(6, nonce=NONCE + 1), "its content is nobody's"),
        (disk(6, block=1), "its content is nobody's"),
        (disk(6, broken=True), "its content is nobody's"),
    ],
)
def test_any_other_content_is_noticed(content: bytes, reason: str):
    with pytest.raises(LedgerError, match=reason):
        ledger(started=7, done=5).check_disk(content)


def test_a_block_that_nobody_wrote_is_zeros():
    ledger().check_disk(bytes(DISK_BYTES))
    with pytest.raises(LedgerError, match="generation 1 is on the disk; 0 was answered"):
        ledger().check_disk(disk(1))


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ({"calls": 6}, "worker 0 counts 6 after 7"),
        ({"started": 1}, "generation 1 is started after 2"),
        ({"started": 2, "done": 0}, "generation 0 is done after 1"),
    ],
)
def test_a_guest_that_has_gone_back_is_noticed(later: dict[str, int], reason: str):
    before = ledger(started=2, done=1)
    ledger(started=3, done=2, calls=8).check_follows(before)
    with pytest.raises(LedgerError, match=reason):
        ledger(**{"started": 2, "done": 1, **later}).check_follows(before)


def test_a_failure_that_the_guest_found_is_told():
    with pytest.raises(LedgerError, match="wrong content: block 3, expected 2, found 1"):
        ledger(error=4)


def test_the_pages_are_found_in_memory():
    ram = bytearray(20 * 4096)
    for worker, place in enumerate((9, 3, 4, 17)):
        ram[place * 4096 : place * 4096 + 4096] = page(worker)
    assert find_pages(memoryview(ram), NONCE) == [9 * 4096, 3 * 4096, 4 * 4096, 17 * 4096]
    with pytest.raises(LedgerError, match="gone"):
        Ledger.read(NONCE, [bytes(4096)])
    with pytest.raises(LedgerError, match="has the pages of workers"):
        find_pages(memoryview(ram), NONCE + 1)
