"""A saved machine as a folder: ``manifest.json``, ``state.json`` and ``ram``.

``manifest.json`` identifies the machine, and fits on a screen. ``state.json``
holds the fields of every part; data is written as ``{"hex": "…"}``. ``ram`` is
guest memory, with holes for pages of zeros. A restored machine maps it, so it
must not change afterwards.

A snapshot is written to a temporary folder beside its place, synced and
renamed. It is complete or absent, whenever the process or the host dies.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pykvm.errors import reason_of
from pykvm.snapshot.fields import Fields, Saved, SnapshotError

FORMAT = 1
PREFIX = ".pykvm-snapshot-"
"""Begins the name of a folder that is not complete yet."""
MANIFEST, STATE, RAM = "manifest.json", "state.json", "ram"
_MOST_JSON = 16 << 20
"""Bytes of a file that is read as a whole.

A machine's state takes some 60 KiB for each vCPU, and two serial ports with much input 4 MiB.
"""
_PAGE = 4096
_ZEROS = bytes(_PAGE)


def check_place(folder: Path) -> None:
    """SnapshotError if ``folder`` cannot be written now: before somebody waits for its content."""
    if os.path.lexists(folder):
        raise SnapshotError(f"{folder} exists already", "give a name that does not exist yet")
    try:
        _aside(folder.parent).rmdir()
    except OSError as error:
        raise _unwritable(folder, error) from None


def _aside(parent: Path) -> Path:
    """A new folder for what is not complete yet. OSError."""
    from tempfile import mkdtemp

    return Path(mkdtemp(prefix=PREFIX, dir=parent))


def _unwritable(folder: Path, error: OSError) -> SnapshotError:
    return SnapshotError(
        f"the snapshot {folder} cannot be written: {reason_of(error)}",
        "give a place in a folder that exists, with room for the guest's memory",
    )


def write(folder: Path, manifest: Mapping[str, Any], state: Fields, ram: memoryview) -> None:
    """Save a machine as ``folder``, which must not exist. SnapshotError, and nothing is left.

    ``manifest`` are further entries of the manifest; ``ram`` is guest memory.
    """
    check_place(folder)
    try:
        written = _aside(folder.parent)
        try:
            _write_ram(written / RAM, ram)
            _write_json(written / STATE, state)
            _write_json(written / MANIFEST, {"format": FORMAT, **manifest})
            _sync(written)
            written = written.rename(folder)
            _sync(folder.parent)
        except BaseException:
            import shutil  # like tempfile, not for those who restore

            shutil.rmtree(written, ignore_errors=True)
            raise
    except OSError as error:
        raise _unwritable(folder, error) from None


class OpenSnapshot:
    """A snapshot that was read: ``manifest``, ``state``, and ``ram``, an open descriptor."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``. SnapshotError if it is no snapshot that this version can read."""
        self.folder = folder
        self.manifest = Saved("manifest", self._read(MANIFEST))
        version = self.manifest.integer("format", 1, 1 << 30)
        if version != FORMAT:
            raise SnapshotError(
                f"the snapshot {folder} has format {version}, this pykvm reads {FORMAT}",
                "make a new snapshot with this version of pykvm",
            )
        self.state = Saved("state", self._read(STATE))
        self.ram = self._open(RAM)

    @property
    def ram_size(self) -> int:
        """Bytes of guest memory."""
        return os.fstat(self.ram).st_size

    def close(self) -> None:
        """Close ``ram``. A mapping of it stays."""
        os.close(self.ram)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, name: str) -> int:
        try:
            # Opening a pipe without O_NONBLOCK would wait for a writer.
            fd = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._unreadable(name, reason_of(error)) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._unreadable(name, "it is no regular file")
        return fd

    def _read(self, name: str) -> object:
        try:
            with open(self._open(name), "rb") as file:
                data = file.read(_MOST_JSON + 1)
        except OSError as error:
            raise self._unreadable(name, reason_of(error)) from None
        if len(data) > _MOST_JSON:
            raise self._unreadable(name, "it is too large")
        try:
            return json.loads(data, object_hook=_data)
        except (ValueError, RecursionError):
            raise self._unreadable(name, "it is not the JSON that pykvm writes") from None

    def _unreadable(self, name: str, reason: str) -> SnapshotError:
        return SnapshotError(
            f"the snapshot {self.folder} cannot be read: {name}: {reason}",
            "give a folder that pykvm has written",
        )


def _data(value: dict[str, Any]) -> object:
    if value.keys() == {"hex"} and isinstance(value["hex"], str):
        return bytes.fromhex(value["hex"])
    return value


def _hex(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    raise TypeError(f"a state holds {type(value).__name__}")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="ascii") as file:
        json.dump(value, file, indent=1, default=_hex)
        file.flush()
        os.fsync(file.fileno())


def _write_ram(path: Path, ram: memoryview) -> None:
    with open(path, "xb", buffering=0) as file:
        os.ftruncate(file.fileno(), len(ram))
        for start, end in _runs(ram):
            at = start
            while at < end:
                at += os.pwrite(file.fileno(), ram[at:end], at)
        os.fsync(file.fileno())


def _runs(ram: memoryview) -> Iterator[tuple[int, int]]:
    """Where pages that are not zeros begin and end."""
    start = -1
    for at in range(0, len(ram), _PAGE):
        if ram[at : at + _PAGE].tobytes() == _ZEROS[: len(ram) - at]:
            if start >= 0:
                yield start, at
            start = -1
        elif start < 0:
            start = at
    if start >= 0:
        yield start, len(ram)


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
