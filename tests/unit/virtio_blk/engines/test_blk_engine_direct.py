"""O_DIRECT: direct and bounced transfers, which change exactly the bytes that they should.

Most tests run on a strict host: the page cache, behind calls that refuse
whatever O_DIRECT may refuse. So they need no disk with large blocks.
"""

import errno
import fcntl
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from blk_host import loop_device, require_direct
from blk_operations import operation
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import CacheMode, Image, SyncEngine
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines import direct
from pykvm.devices.virtio_blk.engines.direct import DirectIo
from pykvm.memory.guest import GuestMemory, address_of
from pykvm.memory.ram import Ram

IN, OUT = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
SIZE = 1 << 16
RAM = 1 << 20


class StrictHost:
    """preadv and pwritev that demand alignment. ``calls`` are (name, offset, length).

    ``short`` limits how many bytes one call moves; ``hook`` is called before each.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.calls: list[tuple[str, int, int]] = []
        self.short = 1 << 30
        self.hook: Callable[[str], None] = lambda name: None
        self._real = {"preadv": os.preadv, "pwritev": os.pwritev}

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in self._real:
            patch.setattr(os, name, self._strict(name))

    def _strict(self, name: str) -> Callable[[int, Sequence[memoryview], int], int]:
        def call(fd: int, views: Sequence[memoryview], offset: int) -> int:
            length = sum(map(len, views))
            self.calls.append((name, offset, length))
            self.hook(name)
            parts = [offset, *map(len, views), *map(address_of, views)]
            if any(part % self.block for part in parts):
                raise OSError(errno.EINVAL, "not aligned")
            joined = bytearray(b"".join(views))[: self.short]
            moved = self._real[name](fd, [joined], offset)
            if name == "preadv":
                for view in views:
                    view[: len(joined)] = joined[: len(view)]
                    del joined[: len(view)]
            return moved

        return call


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Guest RAM as a machine has it: page-aligned, full of something."""
    made = GuestMemory(RAM)
    made.ram.bytes[:] = random.Random(2).randbytes(RAM)
    yield made
    made.close()


@contextmanager
def strict_image(path: Path, block: int) -> Iterator[tuple[Image, StrictHost]]:
    """An image on a strict host with blocks of ``block`` bytes."""
    image = Image(path)
    image.cache = CacheMode.NONE
    image.alignment = block
    with pytest.MonkeyPatch.context() as patch:
        host = StrictHost(block)
        host.patch(patch)
        yield image, host
    image.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("direct") / "disk"


@pytest.fixture
def content(path: Path) -> bytes:
    """The first content of the disk."""
    data = random.Random(1).randbytes(SIZE)
    path.write_bytes(data)
    return data


# -- straight or not ---------------------------------------------------------


def test_an_aligned_transfer_uses_no_bounce_buffer(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    with strict_image(path, 4096) as (image, host):
        io = DirectIo(image, memory.ram)
        assert io.move(operation(IN, 8192, [(0, 4096), (12288, 8192)])) == 12288
        assert io.move(operation(OUT, 0, [(12288, 8192)])) == 8192
        assert host.calls == [("preadv", 8192, 12288), ("pwritev", 0, 8192)]
        assert io.bounced == 0
        io.close()
    assert path.read_bytes() == content[12288:20480] + content[8192:]


@pytest.mark.parametrize(
    ("offset", "segments"),
    [
        pytest.param(512, [(0, 4096)], id="disk offset"),
        pytest.param(0, [(0, 512)], id="length"),
        pytest.param(0, [(8, 4096)], id="address"),
        pytest.param(0, [(0, 512), (512, 3584)], id="segment length"),
        pytest.param(0, [(0, 4096), (4097, 4096)], id="second address"),
    ],
)
@pytest.mark.parametrize("kind", [IN, OUT])
def test_an_unaligned_transfer_uses_the_bounce_buffer(
    path: Path,
    content: bytes,
    memory: GuestMemory,
    kind: int,
    offset: int,
    segments: list[tuple[int, int]],
) -> None:
    length = sum(size for _, size in segments)
    with strict_image(path, 4096) as (image, _):
        io = DirectIo(image, memory.ram)
        before = b"".join(memory.ram.bytes[at : at + size] for at, size in segments)
        assert io.move(operation(kind, offset, segments)) == length
        after = b"".join(memory.ram.bytes[at : at + size] for at, size in segments)
        assert io.bounced == 1
        io.close()
    disk = path.read_bytes()
    if kind == IN:
        assert (after, disk) == (content[offset : offset + length], content)
    else:
        assert disk == content[:offset] + before + content[offset + length :]


def test_only_the_edges_are_read_before_a_write(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    with strict_image(path, 4096) as (image, host):
        io = DirectIo(image, memory.ram)
        expected = {
            (0, 8): [("pwritev", 0, 4096)],
            (1, 2): [("preadv", 0, 4096), ("pwritev", 0, 4096)],
            (0, 9): [("preadv", 4096, 4096), ("pwritev", 0, 8192)],
            (7, 9): [("preadv", 0, 4096), ("pwritev", 0, 8192)],
            (7, 2): [("preadv", 0, 4096), ("preadv", 4096, 4096), ("pwritev", 0, 8192)],
            (7, 17): [("preadv", 0, 4096), ("pwritev", 0, 12288)],
        }
        for (sector, count), calls in expected.items():
            host.calls.clear()
            io.move(operation(OUT, sector * 512, [(1, count * 512)]))
            assert host.calls == calls, (sector, count)


def test_a_large_operation_goes_in_pieces(
    path: Path, content: bytes, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer's size is a bound for memory, not for operations."""
    monkeypatch.setattr(direct, "BOUNCE_SIZE", 8192)
    with strict_image(path, 512) as (image, host):
        io = DirectIo(image, memory.ram)
        assert io.move(operation(IN, 512, [(3, 20480)])) == 20480
        assert [length for _, _, length in host.calls] == [8192, 8192, 4096]
    assert memory.ram.bytes[3:20483] == content[512:20992]


# -- the same bytes as without it -------------------------------------------

sectors = st.integers(0, SIZE // 512)
transfer = st.tuples(
    st.sampled_from([IN, OUT]),
    st.tuples(sectors, sectors).map(sorted).filter(lambda pair: pair[0] < pair[1]),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 7, 512, 4096])), max_size=4),
    st.sampled_from([0, 0, 1, 512, 1000]),
)


def segments_of(length: int, cuts: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    """``length`` bytes cut into segments with gaps, the first at ``start``."""
    made = []
    for count, unit in cuts:
        size = min(length, count * unit)
        if size:
            made.append((start, size))
            start += size + unit
            length -= size
    return [*made, (start, length)] if length else made


@given(
    st.sampled_from([512, 4096]),
    st.sampled_from([4096, 12288, 1 << 20]),
    st.lists(transfer, max_size=8),
)
def test_every_transfer_moves_what_a_plain_one_moves(
    block: int, bounce: int, transfers: list[tuple[int, list[int], list[tuple[int, int]], int]]
) -> None:
    """Executed by :class:`DirectIo` on a strict host, and on two bytearrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "BOUNCE_SIZE", bounce)
        disk = bytearray(random.Random(3).randbytes(SIZE))
        fd = os.memfd_create("disk", os.MFD_CLOEXEC)
        os.pwrite(fd, disk, 0)
        with strict_image(Path(f"/proc/self/fd/{fd}"), block) as (image, _):
            ram = Ram.flat(1 << 18)
            ram.bytes[:] = random.Random(4).randbytes(1 << 18)
            model = bytearray(ram.bytes)
            io = DirectIo(image, ram)
            for kind, (first, last), cuts, start in transfers:
                at, length = first * 512, (last - first) * 512
                segments = segments_of(length, cuts, start)
                assert io.move(operation(kind, at, segments)) == length
                for place, size in segments:
                    if kind == OUT:
                        disk[at : at + size] = model[place : place + size]
                    else:
                        model[place : place + size] = disk[at : at + size]
                    at += size
            assert ram.bytes == model
            assert os.pread(fd, SIZE + 1, 0) == disk
        os.close(fd)


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize("moved", [0, 4096, 8192])
def test_a_short_transfer_reports_the_bytes_moved(
    path: Path, content: bytes, memory: GuestMemory, kind: int, moved: int
) -> None:
    """Two blocks and a half from the middle of a block; the host moves fewer."""
    with strict_image(path, 4096) as (image, host):
        host.hook = lambda name: setattr(
            host, "short", 1 << 30 if name == "preadv" and kind == OUT else moved
        )
        before = bytes(memory.ram.bytes)
        asked = operation(kind, 2048, [(0, 10240)])
        done = DirectIo(image, memory.ram).move(asked)
        assert done == max(moved - 2048, 0)
    if kind == IN:
        assert memory.ram.bytes[:done] == content[2048 : 2048 + done]
        assert memory.ram.bytes[done:] == before[done:]
    else:
        disk = path.read_bytes()
        assert disk == content[:2048] + before[:done] + content[2048 + done :]


def test_an_image_truncated_under_the_device(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    with strict_image(path, 4096) as (image, _):
        io = DirectIo(image, memory.ram)
        os.truncate(path, 5000)
        assert io.move(operation(IN, 0, [(1, 4096)])) == 4096
        assert io.move(operation(IN, 4096, [(1, 1024)])) == 904
        assert io.move(operation(IN, 8192, [(1, 512)])) == 0
        assert io.move(operation(OUT, 8704, [(1, 512)])) == 512
    disk = path.read_bytes()
    assert disk[4096:5000] == content[4096:5000]
    assert disk[5000:] == bytes(8704 - 5000) + memory.ram.bytes[1:513] + bytes(12288 - 9216)


def test_an_error_at_an_edge_is_the_operations(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    def fail(name: str) -> None:
        if name == "preadv":
            raise OSError(errno.EREMOTEIO, "injected")

    with strict_image(path, 4096) as (image, host):
        host.hook = fail
        engine = SyncEngine(image, memory.ram)
        whole, part = operation(OUT, 0, [(0, 4096)]), operation(OUT, 512, [(0, 512)])
        engine.submit([part, whole])
        assert [op.error for op in engine.completions()] == [errno.EREMOTEIO, 0]
        engine.close()
    assert path.read_bytes() == bytes(memory.ram.bytes[:4096]) + content[4096:]


# -- blocks that are larger than they seemed ---------------------------------


@pytest.mark.parametrize("first", [IN, OUT])
@pytest.mark.parametrize("block", [1024, 4096])
def test_a_refused_transfer_leads_to_larger_blocks(
    path: Path, content: bytes, memory: GuestMemory, block: int, first: int
) -> None:
    """EINVAL once, and from then on everybody knows."""
    with strict_image(path, block) as (image, host):
        image.alignment = 512
        io, other = DirectIo(image, memory.ram), DirectIo(image, memory.ram)
        assert io.move(operation(first, 512, [(512, 512)])) == 512
        assert (image.alignment, image.edges) == (block, True)
        host.calls.clear()
        assert other.move(operation(OUT, 3 * 512, [(512, 512)])) == 512
        assert all(length % block == offset % block == 0 for _, offset, length in host.calls)
        assert other.write(memory.ram.bytes[:512], 8704) == 512
        new = bytes(memory.ram.bytes[512:1024])
        start = bytes(memory.ram.bytes[:512])
    disk = bytearray(content)
    if first == OUT:
        disk[512:1024] = new
    disk[1536:2048] = new
    disk[8704:9216] = start
    assert path.read_bytes() == disk


def test_an_alignment_that_another_thread_finds_is_kept(
    path: Path, content: bytes, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with strict_image(path, 512) as (image, host):
        seen = [512, 512]

        class Learning(Image):
            """Whose alignment somebody raises as soon as it was looked at."""

            @property  # type: ignore[override]
            def alignment(self) -> int:
                return seen.pop() if moved and len(seen) > 1 else seen[-1]

            @alignment.setter
            def alignment(self, alignment: int) -> None:
                seen[:] = [alignment]

        moved: list[str] = []
        monkeypatch.setattr(image, "__class__", Learning)
        host.hook = moved.append
        io = DirectIo(image, memory.ram)
        seen[:] = [4096, 512]
        moved.clear()
        assert io.move(operation(IN, 0, [(0, 512)])) == 512
        assert image.alignment == 4096


def test_a_transfer_that_fits_no_block_size_stays_refused(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    with strict_image(path, 1 << 30) as (image, _):
        image.alignment = 512
        io = DirectIo(image, memory.ram)
        for kind in (IN, OUT):
            with pytest.raises(OSError, match="not aligned"):
                io.move(operation(kind, 512, [(512, 512)]))
        assert image.alignment == 512
    assert path.read_bytes() == content


def test_a_part_of_the_last_block_makes_no_file_larger(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    os.truncate(path, SIZE - 512)
    with strict_image(path, 4096) as (image, _):
        image.alignment = 512
        io = DirectIo(image, memory.ram)
        with pytest.raises(OSError, match="larger"):
            io.move(operation(OUT, SIZE - 1024, [(0, 512)]))
        assert io.move(operation(OUT, SIZE - 8192, [(0, 512)])) == 512
        assert io.move(operation(IN, SIZE - 1024, [(1024, 512)])) == 512
        assert memory.ram.bytes[1024:1536] == content[SIZE - 1024 : SIZE - 512]
    assert path.stat().st_size == SIZE - 512


# -- several writers ---------------------------------------------------------


def test_a_write_beside_an_edge_is_not_undone(
    path: Path, content: bytes, memory: GuestMemory
) -> None:
    """Between reading the rest of a block and writing it back, no other thread writes."""
    threads: list[threading.Thread] = []

    with strict_image(path, 4096) as (image, host):
        first, second = DirectIo(image, memory.ram), DirectIo(image, memory.ram)

        def meanwhile(name: str) -> None:
            if name == "preadv" and not threads:
                write: Operation = operation(OUT, 0, [(0, 4096)])
                threads.append(threading.Thread(target=second.move, args=[write]))
                threads[0].start()
                threads[0].join(0.2)

        host.hook = meanwhile
        first.move(operation(OUT, 512, [(8192, 512)]))
        threads[0].join()
    assert path.read_bytes() == bytes(memory.ram.bytes[:4096]) + content[4096:]


def test_without_edges_writers_do_not_wait(path: Path, content: bytes, memory: GuestMemory) -> None:
    with strict_image(path, 512) as (image, host):
        host.hook = lambda name: None if not image.edge_lock.locked() else pytest.fail("locked")
        DirectIo(image, memory.ram).move(operation(OUT, 512, [(1, 512)]))


# -- real ones ----------------------------------------------------------------


@pytest.mark.parametrize("cache", [CacheMode.NONE, CacheMode.DIRECTSYNC])
def test_a_file(tmp_path: Path, memory: GuestMemory, cache: CacheMode) -> None:
    require_direct(tmp_path)
    path = tmp_path / "disk"
    content = random.Random(1).randbytes(SIZE)
    path.write_bytes(content)
    image = Image(path, cache=cache)
    assert fcntl.fcntl(image.fd, fcntl.F_GETFL) & os.O_DIRECT
    transfer_and_check(image, memory, path, content)


@pytest.mark.parametrize("block", [512, 4096])
def test_a_block_device(tmp_path: Path, memory: GuestMemory, block: int) -> None:
    backing = tmp_path / "backing"
    content = random.Random(1).randbytes(SIZE)
    backing.write_bytes(content)
    with loop_device(backing, block) as device:
        image = Image(device, cache=CacheMode.NONE)
        assert image.alignment == block
        transfer_and_check(image, memory, backing, content)


def transfer_and_check(image: Image, memory: GuestMemory, path: Path, content: bytes) -> None:
    """Aligned and not, through the engine; closes ``image``."""
    engine = SyncEngine(image, memory.ram)
    ram = memory.ram.bytes
    writes = [operation(OUT, 0, [(0, 8192)]), operation(OUT, 12288 + 512, [(8192, 1024)])]
    writes.append(operation(OUT, 20480, [(11, 1000), (5000, 3096)]))
    reads = [operation(IN, 0, [(65536, 8192)]), operation(IN, 12288, [(77777, 12288)])]
    engine.submit(writes)
    engine.submit(reads)
    assert [(op.error, op.length - op.moved) for op in engine.completions()] == [(0, 0)] * 5
    engine.close()
    assert image.sync() == 0
    image.close()
    expected = bytearray(content)
    expected[0:8192] = ram[0:8192]
    expected[12800:13824] = ram[8192:9216]
    expected[20480:24576] = bytes(ram[11:1011]) + bytes(ram[5000:8096])
    assert path.read_bytes() == expected
    assert ram[65536 : 65536 + 8192] == expected[0:8192]
    assert ram[77777 : 77777 + 12288] == expected[12288:24576]
