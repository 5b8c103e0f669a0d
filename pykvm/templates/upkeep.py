"""Changes the folder of templates. Imported only by those who make, remove or list some."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pykvm.errors import reason_of
from pykvm.lean.records import record
from pykvm.lean.typing_names import Any, Final
from pykvm.templates import about
from pykvm.templates.store import FAILED, FAILED_SECONDS, Store, TemplateError

BUILDING: Final = ".building"
LOCK: Final = ".lock"
REMOVED: Final = "removed-"
_LOOK_SECONDS: Final = 0.05
_KEY_LENGTH: Final = 32


@record
class Kept:
    """A template that is kept: ``bytes`` on the disk, when it was ``used`` (seconds since 1970)."""

    key: str
    bytes: int
    used: float
    about: dict[str, Any]
    """See :mod:`pykvm.templates.about`; empty if that is not known."""


def prepare(store: Store, wanted: int) -> None:
    """Make the folder. TemplateError unless it can be written, with room for ``wanted`` bytes."""
    try:
        os.makedirs(store.folder, mode=0o700, exist_ok=True)
        if not os.access(store.folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "")
        room = os.statvfs(store.folder)
    except OSError as error:
        raise TemplateError(
            f"none can be kept in {store.folder}: {reason_of(error)}",
            "set PYKVM_CACHE to a folder that can be written",
        ) from None
    free = room.f_bavail * room.f_frsize
    if free < wanted:
        raise TemplateError(
            f"none can be kept in {store.folder}: {free >> 20} MiB are free, and "
            f"{wanted >> 20} MiB may be needed",
            "make room, or set PYKVM_CACHE to a different folder",
        )


@contextmanager
def held(store: Store, key: str, seconds: float, waiting: Callable[[], None]) -> Iterator[bool]:
    """A context that alone makes ``key``. False if it is not free within ``seconds``.

    ``waiting`` is called once if a different process or thread has it. OSError.
    """
    path = store.path(key) + LOCK
    deadline = time.monotonic() + seconds
    fd = _try_lock(path)
    if fd < 0:
        waiting()
    while fd < 0 and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        fd = _try_lock(path)
    try:
        yield fd >= 0
    finally:
        if fd >= 0:
            _unlock(store, key, fd)


def _unlock(store: Store, key: str, fd: int) -> None:
    shutil.rmtree(store.path(key) + BUILDING, ignore_errors=True)
    with suppress(OSError):
        os.unlink(store.path(key) + LOCK)
    os.close(fd)


def _try_lock(path: str) -> int:
    """A descriptor that holds the lock, or -1."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have removed the file meanwhile; then a lock on it means nothing.
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return -1


def building(store: Store, key: str) -> str:
    """A new folder for a template that is not complete, while it is :func:`held`; removed then."""
    path = store.path(key) + BUILDING
    shutil.rmtree(path, ignore_errors=True)  # a killed process may have left one
    os.mkdir(path, 0o700)
    return path


def remove(store: Store, key: str) -> bool:
    """Remove the template ``key``. False if there is none, or its folder cannot be changed."""
    aside = os.path.join(store.folder, f"{REMOVED}{os.getpid()}-{time.monotonic_ns()}")
    try:
        os.rename(store.path(key), aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def kept(store: Store) -> list[Kept]:
    """All templates, the longest unused first. OSError if the folder cannot be read."""
    found = []
    with suppress(FileNotFoundError), os.scandir(store.folder) as entries:
        for entry in entries:
            if _is_key(entry.name) and (one := _look(entry.path, entry.name)):
                found.append(one)
    return sorted(found, key=lambda one: one.used)


def _is_key(name: str) -> bool:
    return len(name) == _KEY_LENGTH and set(name) <= set("0123456789abcdef")


def _look(path: str, key: str) -> Kept | None:
    try:
        used = os.stat(path).st_mtime
        with os.scandir(path) as files:
            size = sum(file.stat(follow_symlinks=False).st_blocks * 512 for file in files)
    except OSError:  # removed meanwhile
        return None
    return Kept(key, size, used, about.read(path))


def failures(store: Store) -> list[str]:
    """Why guests did not boot, within the last hour."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(store.folder)
    keys = sorted(name.removesuffix(FAILED) for name in names if name.endswith(FAILED))
    return [text for key in keys if (text := store.failure(key))]


def tidy(store: Store, limit: int, *, forget: bool = False) -> list[Kept]:
    """Remove rubbish, and templates until ``limit`` bytes are left. Returns these templates.

    ``forget``: also which guests did not boot.
    """
    with suppress(OSError):
        _remove_rubbish(store, forget)
    templates, gone = kept(store), []
    total = sum(one.bytes for one in templates)
    for one in templates:
        if total <= limit:
            break
        if remove(store, one.key):
            gone.append(one)
            total -= one.bytes
    return gone


def _remove_rubbish(store: Store, forget: bool) -> None:
    """What killed processes have left, and notes that no longer count."""
    names = os.listdir(store.folder)
    for name in names:
        path = os.path.join(store.folder, name)
        if name.startswith(REMOVED):
            shutil.rmtree(path, ignore_errors=True)
        elif name.endswith(FAILED):
            with suppress(OSError):
                if forget or time.time() - os.stat(path).st_mtime > FAILED_SECONDS:
                    os.unlink(path)
        elif name.endswith((LOCK, BUILDING)):
            _remove_unheld(store, name.partition(".")[0])


def _remove_unheld(store: Store, key: str) -> None:
    with suppress(OSError):
        fd = _try_lock(store.path(key) + LOCK)
        if fd >= 0:
            _unlock(store, key, fd)
