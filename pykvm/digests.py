"""Hashes of files, remembered in the user's cache, so that a guest is not read at each start.

A digest is remembered by the file's identity: device, inode, size, and the times of its last
changes. The time ``ctime`` cannot be set by programs, so a file that was replaced or changed has
a new identity, even with the old size and ``mtime``.
"""

import hashlib
import os
import time
from contextlib import suppress

from pykvm.cache import cache_folder
from pykvm.lean.typing_names import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "file-digests-1"
"""The name has the format's version."""
_MOST_FILES: Final = 64
_MOST_BYTES: Final = 16 << 10
_SETTLED_NS: Final = 2_000_000_000
"""A change in the same tick of the clock as the last one shows in no time stamp. So the digest of a
file counts for later only when this time has passed since its last change (2 s: FAT's tick)."""
_CHUNK: Final = 1 << 20
_found: "dict[str, str]" = {}
"""The digests by identity that this process has looked up in the file, at most _MOST_FILES."""


def content_digest(path: "Path | str") -> str:
    """The SHA-256 of the file ``path``, in hexadecimal. OSError."""
    with open(path, "rb", buffering=0) as file:
        identity = _identity(file.fileno())
        if known := _recall(identity):
            return known
        digest = _hash(file.fileno())
        found = os.fstat(file.fileno())
        if (
            _identity(file.fileno()) == identity
            and time.time_ns() - found.st_ctime_ns > _SETTLED_NS
        ):
            with suppress(OSError):
                _remember(identity, digest)
        return digest


def _hash(fd: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(fd, _CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _identity(fd: int) -> str:
    s = os.fstat(fd)
    return f"{s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"


def _path() -> str:
    folder = cache_folder()
    return os.path.join(folder, _FILE) if folder else ""


def _lines() -> list[str]:
    """The remembered lines: an identity and a digest each, the oldest first."""
    try:
        with open(_path(), encoding="ascii") as file:
            return file.read(_MOST_BYTES).splitlines()
    except (OSError, ValueError):
        return []


def _recall(identity: str) -> str:
    if digest := _found.get(identity):
        return digest
    for line in _lines():
        known, _, digest = line.rpartition(" ")
        if known == identity and len(digest) == 64:
            if len(_found) < _MOST_FILES:
                _found[identity] = digest
            return digest
    return ""


def _remember(identity: str, digest: str) -> None:
    path = _path()
    if not path:
        return
    lines = [*_lines(), f"{identity} {digest}"][-_MOST_FILES:]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Atomic, because several processes may write at once. One of them may lose its line.
    own = f"{path}.{os.getpid()}"
    try:
        with open(own, "w", encoding="ascii") as file:
            file.write("\n".join(lines))
        os.replace(own, path)
    except OSError:
        with suppress(OSError):
            os.unlink(own)
        raise
