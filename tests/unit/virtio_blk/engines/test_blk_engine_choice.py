"""The choice of a disk's engine, and the reason that its user reads."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blk_host import require_direct

from pykvm.devices.virtio_blk import CacheMode, EngineKind, Image, SyncEngine, choose
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.errors import HostError, UsageError
from pykvm.host import io_uring
from pykvm.memory.ram import Ram

CACHED = [mode for mode in CacheMode if not mode.direct]
DIRECT = [mode for mode in CacheMode if mode.direct]


@contextmanager
def image(folder: Path, cache: CacheMode = CacheMode.WRITEBACK) -> Iterator[Image]:
    if cache.direct:
        require_direct(folder)
    path = folder / "disk"
    path.write_bytes(bytes(8192))
    opened = Image(path, cache=cache)
    yield opened
    opened.close()


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_uring, "problem", lambda: "io_uring is not available: forbidden")


@pytest.mark.parametrize("cache", CACHED)
def test_a_cached_image_gets_the_sync_engine(tmp_path: Path, cache: CacheMode) -> None:
    with image(tmp_path, cache) as opened:
        made, reason = choose(opened, EngineKind.AUTO)
    assert made is SyncEngine
    assert reason == f"sync, because cache={cache.value} uses the host's page cache"


@pytest.mark.parametrize("cache", DIRECT)
@pytest.mark.skipif(bool(io_uring.problem()), reason="no io_uring here")
def test_an_image_with_o_direct_gets_io_uring(tmp_path: Path, cache: CacheMode) -> None:
    from pykvm.devices.virtio_blk.engines.uring import IoUringEngine

    with image(tmp_path, cache) as opened:
        made, reason = choose(opened, EngineKind.AUTO)
        engine = made(opened, Ram.flat(4096))
        assert isinstance(engine, IoUringEngine)
        engine.close()
    assert reason == f"io_uring, because cache={cache.value} bypasses the host's page cache"


def test_without_io_uring_an_image_with_o_direct_gets_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    with image(tmp_path, CacheMode.NONE) as opened:
        made, reason = choose(opened, EngineKind.AUTO)
    assert made is ThreadsEngine
    assert reason.startswith("threads, because cache=none ")
    assert reason.endswith("and io_uring is not available: forbidden")


@pytest.mark.interpreted
def test_a_host_without_memory_for_another_ring_gets_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_uring, "problem", lambda: "")
    with image(tmp_path, CacheMode.NONE) as opened:
        made = choose(opened, EngineKind.AUTO).make
        monkeypatch.setattr(io_uring, "_setup", _no_room)
        engine = made(opened, Ram.flat(4096))
        assert isinstance(engine, ThreadsEngine)
        engine.close()


def _no_room(entries: int, params: bytearray) -> None:
    raise HostError("io_uring is not available: no memory")


@pytest.mark.parametrize("kind", [EngineKind.SYNC, EngineKind.THREADS])
def test_the_engine_that_the_user_wants_is_chosen(tmp_path: Path, kind: EngineKind) -> None:
    with image(tmp_path) as opened:
        made, reason = choose(opened, kind)
        assert made is {EngineKind.SYNC: SyncEngine, EngineKind.THREADS: ThreadsEngine}[kind]
        assert reason == f"{kind.value}, as asked"
        assert choose(opened, made).make is made


def test_io_uring_that_the_host_does_not_provide_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    with image(tmp_path) as opened, pytest.raises(UsageError) as caught:
        choose(opened, EngineKind.IO_URING)
    assert caught.value.message == "io_uring is not available: forbidden"
    assert "engine=auto" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.ENOSYS, "this kernel has none"),
        (errno.EPERM, "forbid"),
        (errno.ENOMEM, "ulimit -l"),
        (errno.EMFILE, "too many open files"),
    ],
)
def test_the_reason_why_a_host_has_no_io_uring(error: int, says: str) -> None:
    reason = io_uring.reason(error, disabled="0")
    assert says in reason


def test_a_sysctl_that_forbids_it_is_named() -> None:
    assert io_uring.reason(errno.EPERM, disabled="2") == "the sysctl kernel.io_uring_disabled is 2"
