"""A disk whose size changes under its driver: notices, refusals, and lost requests."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from linecache import getline
from pathlib import Path
from struct import pack, unpack_from
from threading import Event, Thread
from types import FrameType

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, fill, sector_of, stopping_benches
from blk_device import IN, IOERR, OK, OUT, block_device
from blk_device import Disk as StartedDisk
from blk_host import loop_device, require_direct
from patience import ends, goes_on, in_thread, patience, until

from pykvm.devices.virtio_blk import CacheMode, Image, RateLimits, VirtioBlk
from pykvm.devices.virtio_blk.config_space import FIELDS
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_DISCARD
from pykvm.devices.virtio_blk.image.file import MAX_SIZE
from pykvm.devices.virtio_blk.open import open_image
from pykvm.devices.virtio_blk.resizing import Resizing
from pykvm.errors import UsageError
from pykvm.machine import DiskConfig
from pykvm.testing.fake_transport import FakeTransport

SIZE = SECTORS * 512
LARGER = SIZE + 4096
SMALLER = SIZE // 2
HALF = SECTORS // 2
WRITEBACK = FIELDS["writeback"][0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with stopping_benches(path) as maker:
        yield maker


def capacity(device: VirtioBlk) -> int:
    (sectors,) = unpack_from("<Q", device.config)
    return int(sectors)


def refusal(device: VirtioBlk, size: int) -> str:
    """Why it cannot have ``size`` bytes; nothing changes."""
    before = device.image.size, device.config, os.fstat(device.image.fd).st_size
    with pytest.raises(UsageError) as caught:
        device.resize(size)
    assert (device.image.size, device.config, os.fstat(device.image.fd).st_size) == before
    return str(caught.value)


def test_a_disk_grows_under_its_driver(make: Maker, path: Path) -> None:
    bench = make(EngineScript())
    before = bench.device.config
    assert bench.wait(bench.read(SECTORS))[0] == IOERR
    bench.device.resize(LARGER)
    assert capacity(bench.device) == SECTORS + 8
    assert bench.device.config is not before, "so the generation changes"
    assert bench.transport.config_changes == 1
    assert path.stat().st_size == LARGER
    assert bench.wait(bench.read(SECTORS + 7)) == (OK, bytes(512))
    assert bench.wait(bench.write(SECTORS + 7, fill("n")))[0] == OK
    assert bench.wait(bench.read(SECTORS + 8))[0] == IOERR
    assert sector_of(path, SECTORS + 7) == fill("n")


def test_a_disk_shrinks_only_while_nothing_is_served(make: Maker, path: Path) -> None:
    bench = make(EngineScript())
    assert refusal(bench.device, SMALLER) == (
        f"the disk {path} cannot shrink while its guest runs; "
        "stop the guest, shrink the disk, and resume the guest"
    )
    assert bench.transport.config_changes == 0
    bench.device.pause()
    bench.device.resize(SMALLER)
    late = bench.read(HALF)
    inside = bench.read(HALF - 1)
    bench.device.resume()
    assert [bench.wait(head)[0] for head in (late, inside)] == [IOERR, OK]
    assert (bench.transport.config_changes, path.stat().st_size) == (1, SMALLER)
    assert "cannot shrink" in refusal(bench.device, SMALLER // 2)
    bench.transport.reset()
    bench.device.resize(SMALLER // 2)
    assert capacity(bench.device) == SECTORS // 4
    assert bench.transport.config_changes == 1, "nobody is there to be told"


def test_kept_requests_beyond_the_new_end_fail_and_the_rest_resume(make: Maker, path: Path) -> None:
    """The policy is STOP, and does not count: a request outside the disk always fails."""
    bad = {("write", sector): [errno.ENOSPC] for sector in (0, HALF, HALF + 1)}
    script = EngineScript(Faults(bad))
    bench = make(script)
    requests = [
        bench.write(0, fill("a")),
        bench.write(HALF - 1, fill("b") + fill("c")),
        bench.write(HALF + 1, fill("d")),
        bench.flush(),
        bench.write(HALF - 3, fill("e") + fill("f")),
    ]
    bench.kick()
    assert [error.sector for error in bench.wait_errors(3)] == [0, HALF - 1, HALF + 1]
    bench.device.pause()
    script.take_log()
    bench.device.resize(SMALLER)
    bench.device.resume()
    assert [bench.wait(head)[0] for head in requests] == [OK, IOERR, IOERR, OK, OK]
    assert script.take_log() == [("write", 0, 1), ("flush", 0, 0)]
    assert path.stat().st_size == SMALLER
    assert bench.stats()["failed_wr_operations"] == 2


def test_a_kept_discard_fails_if_one_of_its_ranges_is_beyond_the_end(make: Maker) -> None:
    bench = make(EngineScript(Faults({("write", 0): [errno.ENOSPC]})))

    def discard(*ranges: tuple[int, int]) -> int:
        data = b"".join(pack("<QII", sector, count, 0) for sector, count in ranges)
        return bench.send(VIRTIO_BLK_T_DISCARD, 0, data)

    # Either waits for the write and is kept with it.
    requests = [
        bench.write(0, fill("a")),
        discard((0, 1), (SECTORS - 1, 1)),
        discard((HALF - 4, 4), (0, 4)),
    ]
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    bench.device.resize(SMALLER)
    bench.device.resume()
    assert [bench.wait(head)[0] for head in requests] == [OK, IOERR, OK]


def test_impossible_sizes_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bytes(SIZE))
    device = block_device(Image(path))
    hint = f"give a multiple of 512 from 512 to {MAX_SIZE}"
    for size in (0, -512, 513, SIZE + 256, MAX_SIZE + 512, 1 << 64):
        assert refusal(device, size) == f"the disk image {path} cannot have {size} bytes; {hint}"

    def full(fd: int, size: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full)
        assert "file too large" in refusal(device, LARGER)
    device.close()
    with pytest.raises(UsageError, match="bad file descriptor"):
        device.resize(LARGER)


def test_a_read_only_disk_keeps_its_size(path: Path) -> None:
    path.write_bytes(bytes(SIZE))
    device = block_device(Image(path, readonly=True))
    assert refusal(device, LARGER) == f"the disk image {path} is read-only and keeps its size"
    device.close()


def test_a_size_with_direct_io_is_a_multiple_of_its_alignment(tmp_path: Path, path: Path) -> None:
    require_direct(tmp_path)
    path.write_bytes(bytes(SIZE))
    image = Image(path, cache=CacheMode.NONE)
    device = block_device(image)
    if image.alignment > 512:
        assert f"multiple of {image.alignment} " in refusal(device, SIZE + 512)
    device.resize(LARGER)
    assert image.size == path.stat().st_size == LARGER
    device.close()


def test_a_block_device_takes_only_its_own_size(path: Path) -> None:
    path.write_bytes(bytes(SIZE))
    with loop_device(path) as name:
        device = block_device(Image(name))
        assert refusal(device, LARGER) == (
            f"the block device {name} has {SIZE} bytes and not {LARGER}; "
            "resize it with its own tools first, then tell the guest the new size"
        )
        os.truncate(path, LARGER)
        subprocess.run(["losetup", "--set-capacity", name], check=True, timeout=patience())
        device.resize(LARGER)
        assert capacity(device) == SECTORS + 8
        device.close()


def test_a_snapshot_changes_its_own_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it grows again, the lost part is zeros, and not the content of the image."""
    monkeypatch.setenv("TMPDIR", str(path.parent))
    content = fill("x") * SECTORS
    path.write_bytes(content)
    image, engine, _ = open_image(DiskConfig(path, snapshot=True))
    device = block_device(image, engine=engine)
    with FakeTransport(device) as transport:
        transport.start()
        disk = StartedDisk(transport, device)
        assert disk.do(OUT, 1, fill("y")) == (OK, b"")
        device.pause()
        device.resize(SMALLER)
        device.resize(LARGER)
        device.resume()
        assert disk.do(IN, 0, size=1536) == (OK, fill("x") + fill("y") + fill("x"))
        assert disk.do(IN, HALF - 1, size=1536) == (OK, fill("x") + bytes(1024))
        assert disk.do(IN, SECTORS - 1, size=1024) == (OK, bytes(1024))
        assert disk.do(OUT, SECTORS + 1, fill("z")) == (OK, b"")
        assert disk.do(IN, SECTORS, size=1024) == (OK, bytes(512) + fill("z"))
    device.close()
    assert path.read_bytes() == content


def test_a_driver_that_grows_its_queue_of_requests_meanwhile(make: Maker) -> None:
    """Growing needs no pause: whatever was under way goes on."""
    script = EngineScript(slow=True)
    bench = make(script)
    head = bench.read(SECTORS - 1)
    bench.kick()
    script.wait_for(1)
    bench.device.resize(LARGER)
    script.release()
    assert bench.wait(head)[0] == OK


# -- events during a change -------------------------------------------------


class SlowResize:
    """A change of size that is under way until :meth:`finish`."""

    def __init__(self, device: VirtioBlk, size: int) -> None:
        self._go_on = Event()
        self._begun = Event()
        self._resize = device.image.resize
        device.image.resize = self._slow  # type: ignore[method-assign]
        self._thread = in_thread(lambda: device.resize(size))
        assert self._begun.wait(patience())

    def _slow(self, size: int, block: int) -> None:
        self._resize(size, block)
        self._begun.set()
        assert self._go_on.wait(patience())

    def finish(self) -> None:
        assert goes_on(self._thread)
        self._go_on.set()
        assert ends(self._thread)


def stopped(make: Maker) -> Bench:
    """A disk that a write in the second half has stopped."""
    bench = make(EngineScript(Faults({("write", HALF): [errno.ENOSPC]})))
    bench.write(HALF, fill("a"))
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    bench.script.take_log()
    return bench


def test_a_disk_resumed_while_it_shrinks_resumes_afterwards(make: Maker, path: Path) -> None:
    bench = stopped(make)
    resize = SlowResize(bench.device, SMALLER)
    assert ends(in_thread(bench.device.resume)), "which does not wait"
    inside = bench.read(0)
    bench.kick()
    assert goes_on(bench.io_thread)
    assert bench.script.log == []
    resize.finish()
    assert bench.wait(inside)[0] == OK
    assert bench.script.log == [("read", 0, 1)]
    assert path.stat().st_size == SMALLER


def test_a_disk_paused_while_it_shrinks_stays_paused(make: Maker) -> None:
    bench = stopped(make)
    resize = SlowResize(bench.device, SMALLER)
    bench.device.resume()
    assert bench.device.pause(patience())
    resize.finish()
    bench.read(0)
    bench.kick()
    assert goes_on(bench.io_thread)
    assert bench.script.log == []


def test_a_disk_that_is_not_resumed_stays_stopped(make: Maker) -> None:
    bench = stopped(make)
    SlowResize(bench.device, SMALLER).finish()
    assert goes_on(bench.io_thread)
    assert bench.answered() == []


def test_a_driver_that_starts_while_the_disk_shrinks_is_served_afterwards(make: Maker) -> None:
    bench = make(EngineScript())
    bench.transport.reset()
    resize = SlowResize(bench.device, SMALLER)
    bench.transport.start()
    inside, beyond = bench.read(0), bench.read(HALF)
    bench.kick()
    assert goes_on(bench.io_thread)
    assert bench.script.log == []
    resize.finish()
    assert [bench.wait(head)[0] for head in (inside, beyond)] == [OK, IOERR]


def test_a_queue_that_starts_while_the_disk_shrinks_is_served_afterwards(make: Maker) -> None:
    bench = make(EngineScript())
    bench.transport.stop_queue()
    resize = SlowResize(bench.device, SMALLER)
    bench.transport.start_queue()
    inside, beyond = bench.read(0), bench.read(HALF)
    bench.kick()
    assert goes_on(bench.io_thread)
    assert bench.script.log == []
    resize.finish()
    assert [bench.wait(head)[0] for head in (inside, beyond)] == [OK, IOERR]


@pytest.mark.parametrize("call", [VirtioBlk.resume, Resizing.resize])
def test_a_disk_is_reset_while_a_thread_resumes_it(make: Maker, call: Callable[..., None]) -> None:
    bench = make(EngineScript())
    bench.device.pause()
    resets: list[Thread] = []

    def reset(frame: FrameType, event: str, argument: object) -> object:
        code = frame.f_code
        if code is not call.__code__:
            return None
        if event == "line" and ".resume(" in getline(code.co_filename, frame.f_lineno):
            resets.append(in_thread(bench.transport.reset))
            until(lambda: not bench.device._threads._threads)
        return reset

    traced = sys.gettrace()
    sys.settrace(reset)
    try:
        bench.device.resize(SMALLER)
        bench.device.resume()
    finally:
        sys.settrace(traced)
    assert [ends(thread) for thread in resets] == [True]


def test_a_disk_cannot_shrink_while_a_queue_is_being_stopped(make: Maker) -> None:
    """Its operations in flight could reach the part that is cut off."""
    bench = make(script := EngineScript(slow=True))
    bench.write(HALF, fill("a"))
    bench.kick()
    script.wait_for(1)
    stopping = in_thread(bench.transport.stop_queue)
    assert script.stopped.wait(patience())
    assert "cannot shrink" in refusal(bench.device, SMALLER)
    script.release()
    assert ends(stopping)
    bench.device.resize(SMALLER)


def test_a_failed_change_keeps_the_size_and_resumes_the_disk(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = stopped(make)

    def full(fd: int, size: int) -> None:
        bench.device.resume()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full)
        assert "input/output error" in refusal(bench.device, SMALLER)
    assert bench.wait(bench.read(HALF))[0] == OK


@pytest.mark.parametrize("size", [SMALLER, LARGER])
def test_nothing_waits_for_a_slow_change_of_size(make: Maker, size: int) -> None:
    """Neither the driver nor the owner's other calls wait: the host may take minutes."""
    bench = make(EngineScript())
    device = bench.device
    if size < SIZE:
        device.pause()
    resize = SlowResize(device, size)
    for call in (
        lambda: setattr(device, "limits", RateLimits(iops=1000)),
        lambda: device.write_config(WRITEBACK, 1, 0),
        device.pause,
        device.resume,
        bench.transport.reset,
        bench.transport.start,
    ):
        assert ends(in_thread(call))
    resize.finish()
    assert bench.wait(bench.read(0))[0] == OK


def test_an_image_is_closed_when_its_size_has_changed(make: Maker) -> None:
    bench = make(EngineScript())
    resize = SlowResize(bench.device, LARGER)
    closing = in_thread(bench.device.close)
    assert goes_on(closing)
    resize.finish()
    assert ends(closing)
