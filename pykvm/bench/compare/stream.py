"""The requests of an installation, of a boot and of a database, for the bare-metal guest. Pure.

They are a model, the same in every run: requests of 4 KiB as a kernel sends them that merges
nothing, in the batches in which it would submit them. The disk's layout is that of a small ext4:
groups, each with bitmaps, a table of inodes and data, and a journal in the middle.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

BLOCK = 4096
_GROUP = 2048
_TABLE = 32
"""Blocks of a group, and of its table of inodes."""
_JOURNAL = 256
DISK_BLOCKS = 8 * _GROUP
_FILES = 320
_FILE_MOST = 24
_TOGETHER = 12
"""Files that are written back in one batch."""
_BATCH = 48
"""The most requests in a batch, also of a batch that is longer in the model."""
_AHEAD = 32
"""Blocks that are read ahead."""
_SEED = 2014


@dataclass(frozen=True, slots=True)
class Request:
    """A request: ``read``, ``write`` or ``flush``, at ``block``, of one block."""

    kind: str
    block: int = 0


Batch = Sequence[Request]
FLUSH: Batch = (Request("flush"),)


def install() -> Iterator[Batch]:
    """mke2fs, many small files, writes with fsync, and a cold sequential read of all files."""
    files = _files()
    yield from _mkfs()
    yield from _unpack(files)
    yield from _database(120)
    yield from _read_files(files)


def boot() -> Iterator[Batch]:
    """Reads of files in part and out of order, with a few small writes in between."""
    random, files = Random(_SEED), _files()
    for number in range(400):
        begin, length = random.choice(files)
        skipped = random.randrange(length)
        run = [Request("read", begin + i) for i in range(skipped, length)]
        metadata = Request("read", _table_block(begin, random))
        yield from _cut([metadata, *run[: random.choice((1, 2, 4, 16))]])
        if number % 40 == 0:
            yield from _commit(number, [Request("write", _table_block(begin, random))])


def database() -> Iterator[Batch]:
    """Small writes, each with the journal's blocks and two flushes."""
    yield from _database(500)


STREAMS: Mapping[str, Callable[[], Iterator[Batch]]] = {
    "install": install,
    "boot": boot,
    "fsync": database,
}


def _files() -> list[tuple[int, int]]:
    """The first block and the number of blocks of each file, in the order of their making.

    Two programs make files, each in a group of its own, as an allocator has it.
    """
    random, found = Random(_SEED), []
    free = [_data_begin(group) for group in (0, 4)]
    for number in range(_FILES):
        writer = number % 2
        length = min(_FILE_MOST, 1 + int(random.expovariate(1 / 7)))
        if free[writer] % _GROUP + length > _GROUP:
            free[writer] = _data_begin(free[writer] // _GROUP + 1)
        found.append((free[writer], length))
        free[writer] += length
    return found


def _data_begin(group: int) -> int:
    return group * _GROUP + 2 + _TABLE


def _table_block(block: int, random: Random) -> int:
    return block // _GROUP * _GROUP + 2 + random.randrange(_TABLE)


def _mkfs() -> Iterator[Batch]:
    for group in range(DISK_BLOCKS // _GROUP):
        begin = group * _GROUP
        yield from _cut([Request("write", begin + i) for i in range(2 + _TABLE)])
    journal = DISK_BLOCKS // 2 - _JOURNAL
    yield from _cut([Request("write", journal + i) for i in range(_JOURNAL)])
    yield FLUSH


def _unpack(files: Sequence[tuple[int, int]]) -> Iterator[Batch]:
    random = Random(_SEED + 1)
    for number, first in enumerate(range(0, len(files), _TOGETHER)):
        some = files[first : first + _TOGETHER]
        data = [[Request("write", begin + i) for i in range(length)] for begin, length in some]
        yield from _cut(_interleaved(data, random))
        metadata = [Request("write", _table_block(begin, random)) for begin, _ in some]
        metadata += [Request("write", begin // _GROUP * _GROUP) for begin, _ in some[:2]]
        yield from _commit(number, sorted(set(metadata), key=lambda one: one.block))


def _interleaved(runs: Sequence[Sequence[Request]], random: Random) -> list[Request]:
    """The runs of two writers, a piece of one and a piece of the other in turn."""
    found: list[Request] = []
    left = [[one for run in runs[writer::2] for one in run] for writer in (0, 1)]
    while any(left):
        for writer in (0, 1):
            length = random.randrange(1, 17)
            found += left[writer][:length]
            del left[writer][:length]
    return found


def _commit(number: int, metadata: Sequence[Request]) -> Iterator[Batch]:
    """A transaction of the journal, and the blocks that it describes at their places."""
    journal, place = DISK_BLOCKS // 2 - _JOURNAL, number * 17 % (_JOURNAL - 20)
    yield [Request("write", journal + place + i) for i in range(min(16, len(metadata)) + 1)]
    yield FLUSH
    yield [Request("write", journal + place + 17)]
    yield FLUSH
    yield from _cut(metadata)


def _database(transactions: int) -> Iterator[Batch]:
    random = Random(_SEED + 2)
    table, log = _data_begin(6), _data_begin(7)
    for number in range(transactions):
        length = random.randrange(1, 4)
        yield [Request("write", log + number * 3 % 1500 + i) for i in range(length)]
        yield FLUSH
        if number % 8 == 7:
            pages = sorted(random.sample(range(1800), 12))
            yield [Request("write", table + page) for page in pages]


def _read_files(files: Sequence[tuple[int, int]]) -> Iterator[Batch]:
    random = Random(_SEED + 3)
    for begin, length in sorted(files):
        yield [Request("read", _table_block(begin, random))]
        for first in range(0, length, _AHEAD):
            blocks = range(first, min(length, first + _AHEAD))
            yield [Request("read", begin + i) for i in blocks]


def _cut(requests: Sequence[Request]) -> Iterator[Batch]:
    for first in range(0, len(requests), _BATCH):
        yield requests[first : first + _BATCH]
