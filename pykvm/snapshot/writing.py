"""Writes the folder of a snapshot (:mod:`pykvm.snapshot.folder`).

It is written as a temporary folder beside its place, synced and renamed. So it is complete or
absent, whenever the process or the host dies. A process holds a lock on its temporary
folder, so that the next one can tell rubbish.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from pykvm.errors import reason_of
from pykvm.lean.typing_names import Any, Final
from pykvm.snapshot.content import content_hash
from pykvm.snapshot.fields import Fields, SnapshotError
from pykvm.snapshot.folder import FORMAT, MANIFEST, MOST_JSON, RAM, STATE

PREFIX: Final = ".pykvm-snapshot-"
"""Begins the name of a folder that is not complete yet."""


def check_place(folder: Path) -> None:
    """SnapshotError if ``folder`` cannot be written now: before somebody waits for its content."""
    if os.path.lexists(folder):
        raise SnapshotError(f"{folder} exists already", "give a name that does not exist yet")
    with unfinished(folder):
        pass


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A temporary folder beside the place ``folder``, which is removed at the end.

    What killed processes have left there is removed before. SnapshotError, also instead of any
    OSError within.
    """
    try:
        _remove_abandoned(folder.parent)
        made, lock = _aside(folder.parent)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            if lock >= 0:
                os.close(lock)
    except OSError as error:
        raise SnapshotError(
            f"the snapshot {folder} cannot be written: {reason_of(error)}",
            "give a place in a folder that exists, with room for the guest's memory",
        ) from None


def _aside(parent: Path) -> tuple[Path, int]:
    """A new folder for what is not complete yet, and a descriptor that locks it, or -1. OSError."""
    while True:
        made = mkdtemp(prefix=PREFIX, dir=parent)
        try:
            return Path(made), _lock(made)
        except (BlockingIOError, FileNotFoundError):
            continue  # before it was locked, a different process took it for rubbish
        except OSError:
            return Path(made), -1  # a filesystem without locks, where nobody removes anything


def _lock(folder: str) -> int:
    """A descriptor that holds the lock of ``folder``. BlockingIOError if a different one does."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders in ``parent`` whose processes have died."""
    with suppress(OSError), os.scandir(parent) as entries:
        for path in [entry.path for entry in entries if entry.name.startswith(PREFIX)]:
            with suppress(OSError):
                lock = _lock(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def adopt(made: Path, folder: Path) -> None:
    """Give the complete and synced folder ``made`` the name ``folder``, or none. OSError."""
    made.rename(folder)
    try:
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    state: Fields,
    write_ram: Callable[[int], None],
    write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Save a machine as ``folder``, which must not exist. SnapshotError, and nothing is left.

    ``manifest`` are further entries of the manifest. ``write_ram`` writes guest memory into the
    empty file whose descriptor it gets. ``write_more`` writes and syncs more files into the
    folder that it gets.
    """
    check_place(folder)
    with unfinished(folder) as made:
        _write_json(made / STATE, state)
        with open(made / RAM, "xb", buffering=0) as file:
            write_ram(file.fileno())
            os.fsync(file.fileno())
        write_more(made)
        hashes = {}
        for name in sorted(os.listdir(made)):
            with open(made / name, "rb") as file:
                hashes[name] = content_hash(file.fileno())
        _write_json(made / MANIFEST, {"format": FORMAT, **manifest, "hashes": hashes})
        _sync(made)
        adopt(made, folder)


def _hex(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    raise TypeError(f"a state holds {type(value).__name__}")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as a new file. SnapshotError if it would be too large to be read."""
    data = json.dumps(value, indent=1, default=_hex).encode("ascii")
    if len(data) > MOST_JSON:
        raise SnapshotError(
            f"{path.name} would have {len(data) >> 20} MiB, and at most {MOST_JSON >> 20} can be "
            "read again",
            "let the guest take its input, and finish its requests, before it is saved",
        )
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some filesystems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)
