"""Cache modes as a driver sees them: the ``writeback`` byte, flushes, durable writes.

``syncs`` counts the calls of fdatasync. tests/linux/test_linux_flush_order.py checks the
order of all system calls.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest
from blk_bench import Bench, EngineScript, fill
from blk_device import block_device
from blk_host import require_direct
from patience import ends, goes_on, in_thread, patience

from pykvm.devices.virtio_blk import (
    CacheMode,
    ErrorAction,
    Image,
    IoError,
    MergePolicy,
)
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_OUT,
)
from pykvm.testing.fake_transport import FakeTransport
from pykvm.virtio.constants import VIRTIO_F_VERSION_1
from pykvm.virtio.registers import TransportState

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
WRITEBACK_AT = 32
NEITHER = VIRTIO_F_VERSION_1
FLUSH_ONLY = VIRTIO_F_VERSION_1 | VIRTIO_BLK_F_FLUSH
WCE_ONLY = VIRTIO_F_VERSION_1 | VIRTIO_BLK_F_CONFIG_WCE
BOTH = FLUSH_ONLY | VIRTIO_BLK_F_CONFIG_WCE
MODES = list(CacheMode)
SYNCING = [mode for mode in CacheMode if mode.syncs]
BUFFERED = [mode for mode in SYNCING if not mode.direct]
DIRECT = [mode for mode in SYNCING if mode.direct]


class Syncs:
    """Stands for os.fdatasync. ``fails`` are the errnos of the next calls, 0 for success."""

    def __init__(self) -> None:
        self.count = 0
        self.fails: list[int] = []

    def __call__(self, fd: int) -> None:
        self.count += 1
        if self.fails and (error := self.fails.pop(0)):
            raise OSError(error, "injected")

    def during(self, action: Callable[[], object]) -> int:
        """How many calls ``action`` makes."""
        before = self.count
        action()
        return self.count - before


class Disk:
    """A started device and its driver."""

    def __init__(
        self, path: Path, cache: CacheMode, features: int = BOTH, readonly: bool = False
    ) -> None:
        self.errors: list[IoError] = []
        self.failed = threading.Event()
        self.device = block_device(Image(path, readonly, cache), on_error=self._note)
        self.transport = FakeTransport(self.device, features=features)
        self.transport.start()

    def _note(self, error: IoError) -> None:
        self.errors.append(error)
        self.failed.set()

    def write(self) -> int:
        """Its status."""
        return self._status([pack("<IIQ", VIRTIO_BLK_T_OUT, 0, 1), b"w" * 512])

    def flush(self) -> int:
        return self._status([pack("<IIQ", VIRTIO_BLK_T_FLUSH, 0, 0)])

    def _status(self, readable: list[bytes]) -> int:
        driver = self.transport.drivers[0]
        head = driver.send(readable, [1])
        self.transport.wait(head)
        return driver.response(head)[0]

    @property
    def writeback(self) -> int:
        """The byte that the driver reads."""
        return self.device.config[WRITEBACK_AT]

    def set_writeback(self, value: int) -> None:
        self.device.write_config(WRITEBACK_AT, 1, value)

    def restart(self) -> None:
        """As when a driver is loaded again."""
        self.transport.reset()
        self.transport.start()

    def close(self) -> None:
        self.transport.close()
        self.device.close()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    made = Syncs()
    monkeypatch.setattr(os, "fdatasync", made)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 16))
    return file


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Disk]]:
    """Makes disks: cache mode, features, readonly."""
    made: list[Disk] = []

    def maker(cache: CacheMode, *arguments: object, **options: object) -> Disk:
        if cache.direct:
            require_direct(path.parent)
        made.append(Disk(path, cache, *arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield maker
    for disk in made:
        disk.close()


# -- the byte ------------------------------------------------------------------


@pytest.mark.parametrize("cache", MODES)
def test_the_mode_gives_the_first_value(make: Callable[..., Disk], cache: CacheMode) -> None:
    writethrough = (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)
    assert make(cache).writeback == (0 if cache in writethrough else 1)


@pytest.mark.parametrize("features", [NEITHER, WCE_ONLY])
def test_a_driver_that_cannot_flush_begins_in_write_through(
    make: Callable[..., Disk], features: int
) -> None:
    disk = make(CacheMode.WRITEBACK, features)
    assert disk.writeback == 0
    assert not disk.device.writeback
    disk.transport.reset()
    assert disk.writeback == 1


@pytest.mark.parametrize("features", [NEITHER, FLUSH_ONLY])
def test_only_a_driver_that_negotiated_it_writes_the_byte(
    make: Callable[..., Disk], features: int
) -> None:
    disk = make(CacheMode.WRITEBACK, features)
    config = disk.device.config
    disk.set_writeback(0)
    assert disk.device.config == config


def test_only_that_byte_is_written(make: Callable[..., Disk]) -> None:
    disk = make(CacheMode.WRITEBACK)
    config = disk.device.config
    for offset, size in ((WRITEBACK_AT - 1, 1), (WRITEBACK_AT, 2), (WRITEBACK_AT - 1, 2), (0, 8)):
        disk.device.write_config(offset, size, 0)
    assert disk.device.config == config


@pytest.mark.parametrize(("value", "read"), [(0, 0), (1, 1), (2, 1), (255, 1)])
def test_every_value_is_on_or_off(make: Callable[..., Disk], value: int, read: int) -> None:
    disk = make(CacheMode.WRITEBACK)
    disk.set_writeback(value)
    assert disk.writeback == read


def test_a_switch_changes_the_configuration_generation(make: Callable[..., Disk]) -> None:
    disk = make(CacheMode.WRITEBACK)
    registers = TransportState(disk.device, disk.transport.ram, [], None)  # type: ignore[arg-type]
    first = registers.config.generation
    assert registers.config.generation == first
    registers.config.write(WRITEBACK_AT, 1, 0)
    assert registers.config.generation != first
    assert registers.config.read(WRITEBACK_AT, 1) == 0


@pytest.mark.parametrize("cache", MODES)
def test_reset_restores_the_modes_value(make: Callable[..., Disk], cache: CacheMode) -> None:
    disk = make(cache)
    first = disk.writeback
    disk.set_writeback(1 - first)
    assert disk.writeback == 1 - first
    disk.transport.reset()
    assert disk.writeback == first


# -- which writes are durable ----------------------------------------------------


@pytest.mark.parametrize("cache", MODES)
@pytest.mark.parametrize("features", [NEITHER, FLUSH_ONLY, WCE_ONLY, BOTH])
def test_a_write_syncs_unless_the_driver_flushes(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode, features: int
) -> None:
    disk = make(cache, features)
    flushes = bool(features & VIRTIO_BLK_F_FLUSH)
    durable = cache.syncs and not (cache.writeback and flushes)
    assert syncs.during(disk.write) == durable
    assert syncs.during(disk.flush) == cache.syncs


@pytest.mark.parametrize("cache", SYNCING)
def test_the_driver_switches_while_it_runs(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode
) -> None:
    disk = make(cache)
    for writeback in (0, 1, 0, 1):
        disk.set_writeback(writeback)
        assert syncs.during(disk.write) == 1 - writeback
        assert syncs.during(disk.flush) == 1


def test_a_switch_to_write_through_syncs_earlier_writes(
    make: Callable[..., Disk], syncs: Syncs
) -> None:
    disk = make(CacheMode.WRITEBACK)
    disk.write()
    assert syncs.during(lambda: disk.set_writeback(0)) == 1
    assert syncs.during(lambda: disk.set_writeback(0)) == 0
    assert syncs.during(lambda: disk.set_writeback(1)) == 0


def test_reset_undoes_a_switch(make: Callable[..., Disk], syncs: Syncs) -> None:
    disk = make(CacheMode.WRITEBACK)
    disk.set_writeback(0)
    disk.restart()
    assert syncs.during(disk.write) == 0


@pytest.mark.parametrize("features", [NEITHER, FLUSH_ONLY, BOTH])
def test_unsafe_never_syncs(make: Callable[..., Disk], syncs: Syncs, features: int) -> None:
    disk = make(CacheMode.UNSAFE, features)
    for writeback in (1, 0):
        disk.set_writeback(writeback)
        assert (disk.write(), disk.flush()) == (OK, OK)
    assert syncs.count == 0


@pytest.mark.parametrize("cache", MODES)
def test_a_read_only_disk_accepts_flush(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode
) -> None:
    """Firmware sends it; there is nothing to sync."""
    disk = make(cache, BOTH, readonly=True)
    assert disk.flush() == OK
    assert syncs.count == 0


# -- when fdatasync fails ---------------------------------------------------------


@pytest.mark.parametrize("cache", BUFFERED)
def test_after_a_failed_sync_no_flush_succeeds_until_reopened(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode
) -> None:
    disk = make(cache)
    syncs.fails = [errno.EIO]
    assert disk.flush() == IOERR
    assert [disk.flush() for _ in range(3)] == [IOERR] * 3
    disk.restart()
    assert disk.flush() == IOERR
    disk.close()
    assert make(cache).flush() == OK


@pytest.mark.parametrize("cache", BUFFERED)
def test_after_a_failed_sync_no_write_is_durable(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode
) -> None:
    disk = make(cache)
    disk.set_writeback(0)
    syncs.fails = [errno.EIO]
    assert [disk.write() for _ in range(3)] == [IOERR] * 3
    assert disk.flush() == IOERR
    disk.set_writeback(1)
    assert disk.write() == OK


@pytest.mark.parametrize("cache", DIRECT)
def test_without_a_page_cache_each_sync_speaks_for_itself(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode
) -> None:
    disk = make(cache)
    disk.set_writeback(0)
    syncs.fails = [errno.EIO, 0, errno.EIO]
    assert [disk.flush(), disk.flush()] == [IOERR, OK]
    assert [disk.write(), disk.write()] == [IOERR, OK]


def test_a_sync_without_space_does_not_stop(make: Callable[..., Disk], syncs: Syncs) -> None:
    """The pages are gone: to make space and try again would be of no use."""
    disk = make(CacheMode.WRITEBACK)
    syncs.fails = [errno.ENOSPC]
    assert [disk.flush(), disk.flush()] == [IOERR, IOERR]
    assert [(error.errno, error.action, error.lost) for error in disk.errors] == [
        (errno.ENOSPC, ErrorAction.REPORT, True),
        (errno.EIO, ErrorAction.REPORT, True),
    ]


def test_without_a_page_cache_a_sync_without_space_stops(
    make: Callable[..., Disk], syncs: Syncs
) -> None:
    """Nothing is lost, and with space the next attempt succeeds."""
    disk = make(CacheMode.NONE)
    syncs.fails = [errno.ENOSPC]
    driver = disk.transport.drivers[0]
    head = driver.send([pack("<IIQ", VIRTIO_BLK_T_FLUSH, 0, 0)], [1])
    disk.transport.submit()
    assert disk.failed.wait(patience())
    disk.device.pause()
    assert disk.transport.collect() == []
    disk.device.resume()
    disk.transport.wait(head)
    assert driver.response(head)[0] == OK
    assert [(error.errno, error.action, error.lost) for error in disk.errors] == [
        (errno.ENOSPC, ErrorAction.STOP, False)
    ]


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, *DIRECT])
def test_a_switch_to_write_through_whose_sync_fails_does_not_happen(
    make: Callable[..., Disk], syncs: Syncs, cache: CacheMode
) -> None:
    """The driver reads that it has to go on flushing, and hears of the next failure itself."""
    disk = make(cache)
    disk.set_writeback(1)
    disk.write()
    syncs.fails = [errno.EIO, errno.EIO]
    disk.set_writeback(0)
    assert disk.writeback == 1
    assert disk.flush() == IOERR
    if cache.direct:
        disk.set_writeback(0)
        assert disk.writeback == 0
        assert disk.write() == OK


def test_a_switch_to_write_through_covers_all_writes_before_it(path: Path, syncs: Syncs) -> None:
    """The sync comes when no write is in flight. Writes that start later are durable themselves."""
    script = EngineScript(slow=True)
    with Bench(path, script, merge=MergePolicy.OFF) as bench:
        heads = [bench.write(0, fill("a")), bench.write(0, fill("b"))]
        bench.kick()
        script.wait_for(1)
        switching = in_thread(lambda: bench.device.write_config(WRITEBACK_AT, 1, 0))
        assert goes_on(switching)
        assert syncs.count == 0
        script.release()
        script.wait_for(1)
        assert ends(switching)
        assert syncs.count == 1
        assert script.waiting[0][1].durable
        script.release()
        assert [bench.wait(head)[0] for head in heads] == [OK, OK]
