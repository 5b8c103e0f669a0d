"""The socket file: only its owner may use it, it replaces no other file, and the end removes it."""

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from pykvm.errors import UsageError, reason_of

_BACKLOG = 8


class MonitorSocket:
    """A non-blocking socket that listens at ``path``. A context manager, which removes it.

    A stale socket at ``path``, on which no process listens any more, is
    replaced. UsageError if any other file is there, or the socket cannot be
    made.
    """

    def __init__(self, path: Path) -> None:
        if str(path) == "-":
            raise UsageError("--monitor - is not a path", "write ./- for a socket of that name")
        if "\0" in str(path):
            raise UsageError(f"--monitor {str(path)!r} is not a file name")
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.setblocking(False)
            # bind() gives this mode to the file, so at no moment can other users connect.
            os.fchmod(self.socket.fileno(), 0o600)
            self._bind()
            self.socket.listen(_BACKLOG)
            self._inode = _inode(path)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # Once the socket is closed, a different pykvm may take the file for a stale one.
        if _inode(self.path) == self._inode:
            with suppress(OSError):
                os.unlink(self.path)
        self.socket.close()

    def _bind(self) -> None:
        try:
            try:
                self.socket.bind(os.fspath(self.path))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(self.path)
                self.socket.bind(os.fspath(self.path))
        except OSError as error:
            raise _unusable(self.path, error) from None


def _unusable(path: Path, error: OSError) -> UsageError:
    if error.errno is None:  # Python checked the 108 bytes of sun_path
        reason, hint = "the path is too long for a socket", "use one of at most 107 bytes"
    else:
        reason = reason_of(error)
        hint = "give a path in a folder where files can be made"
    return UsageError(f"--monitor {path}: {reason}", hint)


def _remove_stale(path: Path) -> None:
    """Remove the socket at ``path`` if no process listens on it; else UsageError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"--monitor {path}: a file with this name exists", "give a different path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener with a full backlog is alive
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise UsageError(f"--monitor {path}: a process listens there already", "give a different path")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
