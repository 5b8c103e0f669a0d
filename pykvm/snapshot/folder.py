"""A saved machine as a folder: ``manifest.json``, ``state.json`` and ``ram``.

``manifest.json`` identifies the machine, and fits on a screen. ``state.json``
holds the fields of every part; data is written as ``{"hex": "…"}``. ``ram`` is
guest memory, with holes for pages of zeros. A restored machine maps it, so it
must not change afterwards.

A snapshot is written to a temporary folder beside its place, synced and
renamed. It is complete or absent, whenever the process or the host dies.

The manifest holds a hash of each of the other two files. Only :func:`verify` reads them as
a whole to compare, because that takes longer than a restore.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pykvm.errors import reason_of
from pykvm.lean.typing_names import Any, Self
from pykvm.snapshot.fields import Fields, Saved, SnapshotError

FORMAT = 2
PREFIX = ".pykvm-snapshot-"
"""Begins the name of a folder that is not complete yet."""
MANIFEST, STATE, RAM = "manifest.json", "state.json", "ram"
_MOST_JSON = 16 << 20
"""Bytes of a file that is read as a whole.

A machine's state takes some 60 KiB for each vCPU, and two serial ports with much input 4 MiB.
"""
_PAGE = 4096
_ZEROS = bytes(_PAGE)

Range = tuple[int, int]
"""The first byte of a range in guest memory, and the byte after its last one."""


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


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    state: Fields,
    ram: memoryview,
    ranges: Iterable[Range],
    write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Save a machine as ``folder``, which must not exist. SnapshotError, and nothing is left.

    ``manifest`` are further entries of the manifest. ``ram`` is guest memory, which holds zeros
    outside ``ranges``; these are in order. ``write_more`` writes and syncs more files into the
    folder that it gets.
    """
    check_place(folder)
    try:
        written = _aside(folder.parent)
        try:
            hashes = {
                "ram_hash": _write_ram(written / RAM, ram, ranges),
                "state_hash": _write_json(written / STATE, state),
            }
            write_more(written)
            _write_json(written / MANIFEST, {"format": FORMAT, **manifest, **hashes})
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
    """A snapshot that was read: ``manifest``, ``state``, and ``ram``, an open descriptor.

    All three are of one folder, even if a different one takes its name meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``. SnapshotError if it is no snapshot that this version can read."""
        with _Folder(folder) as opened:
            self.manifest = opened.manifest()
            self.state = opened.json(STATE)
            self.ram = opened.open(RAM)

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


def read_manifest(folder: Path) -> Fields:
    """The manifest of ``folder``, alone. SnapshotError if it is none that this version can read."""
    with _Folder(folder) as opened:
        return opened.manifest()


def verify(folder: Path, manifest: Fields, ram: memoryview, ranges: Iterable[Range]) -> None:
    """SnapshotError unless ``folder`` holds the state, and ``ram`` the memory, of ``manifest``."""
    with _Folder(folder) as opened:
        found = {"state": hashlib.sha256(opened.read(STATE)).digest()}
    found["ram"] = _hash(ram, ranges)
    for name, digest in found.items():
        if manifest.get(f"{name}_hash") != digest:
            raise SnapshotError(
                f"the snapshot {folder} has changed since it was written: its {name} is different",
                "make a new snapshot",
            )


class _Folder:
    """An open folder that should hold a snapshot. All methods raise SnapshotError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(reason_of(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def manifest(self) -> Fields:
        fields = self.json(MANIFEST)
        version = Saved("manifest", fields).integer("format", 1, 1 << 30)
        if version != FORMAT:
            raise SnapshotError(
                f"the snapshot {self._folder} has format {version}, this pykvm reads {FORMAT}",
                "make a new snapshot with this version of pykvm",
            )
        return fields

    def json(self, name: str) -> Fields:
        try:
            fields = json.loads(self.read(name), object_hook=_data)
        except (ValueError, RecursionError):
            raise self._unreadable(f"{name}: it is not the JSON that pykvm writes") from None
        if not isinstance(fields, dict):
            Saved(name.removesuffix(".json"), fields)
        return fields  # type: ignore[no-any-return]

    def read(self, name: str) -> bytes:
        try:
            with open(self.open(name), "rb") as file:
                data = file.read(_MOST_JSON + 1)
        except OSError as error:
            raise self._unreadable(f"{name}: {reason_of(error)}") from None
        if len(data) > _MOST_JSON:
            raise self._unreadable(f"{name}: it is too large")
        return data

    def open(self, name: str) -> int:
        try:
            # Opening a pipe without O_NONBLOCK would wait for a writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            raise self._unreadable(f"{name}: {reason_of(error)}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._unreadable(f"{name}: it is no regular file")
        return fd

    def _unreadable(self, reason: str) -> SnapshotError:
        return SnapshotError(
            f"the snapshot {self._folder} cannot be read: {reason}",
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


def _write_json(path: Path, value: Mapping[str, Any]) -> bytes:
    """Write ``value`` as a new file; return the hash of the file."""
    data = json.dumps(value, indent=1, default=_hex).encode("ascii")
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).digest()


def _write_ram(path: Path, ram: memoryview, ranges: Iterable[Range]) -> bytes:
    """Write ``ram`` as a new file; return its hash, as :func:`_hash` does."""
    with open(path, "xb", buffering=0) as file:
        os.ftruncate(file.fileno(), len(ram))
        runs = []
        for start, end in _runs(ram, ranges):
            runs.append((start, end))
            at = start
            while at < end:
                at += os.pwrite(file.fileno(), ram[at:end], at)
        os.fsync(file.fileno())
    return _hash(ram, runs)


def _hash(ram: memoryview, ranges: Iterable[Range]) -> bytes:
    """A hash of ``ram``, which holds zeros outside ``ranges``. Pages of zeros take no time."""
    digest = hashlib.sha256()
    for start, end in _runs(ram, ranges):
        digest.update(b"%d-%d:" % (start, end))
        digest.update(ram[start:end])
    return digest.digest()


def _runs(ram: memoryview, ranges: Iterable[Range]) -> Iterator[Range]:
    """Where pages that are not zeros begin and end, whatever ``ranges`` of ``ram`` hold data."""
    start, done = -1, 0
    for first, last in ranges:
        # A filesystem's blocks may be smaller than pages.
        begin = max(done, first // _PAGE * _PAGE)
        if start >= 0 and begin > done:
            yield start, done
            start = -1
        for at in range(begin, last, _PAGE):
            if ram[at : at + _PAGE].tobytes() == _ZEROS[: len(ram) - at]:
                if start >= 0:
                    yield start, at
                start = -1
            elif start < 0:
                start = at
        done = max(done, min(-(-last // _PAGE) * _PAGE, len(ram)))
    if start >= 0:
        yield start, done


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
