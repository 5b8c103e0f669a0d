"""The socket file: made for its owner only, never in another's place, and removed at the end."""

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
    """Listens at ``path`` from now on, without blocking; a context that closes and removes it.

    UsageError if that cannot be. A socket that nobody listens at any more is
    replaced; anything else that is there is left alone.
    """

    def __init__(self, path: Path) -> None:
        if str(path) == "-":
            raise UsageError("--monitor - names no socket", "a file of that name is ./-")
        if "\0" in str(path):
            raise UsageError(f"--monitor {str(path)!r} is not a file name")
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.setblocking(False)
            # Linux takes the file's mode from the socket's: at no moment can others connect.
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
        # Before the socket is closed: until then nobody takes it for an abandoned one.
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
    if error.errno is None:  # Python's own check, of the 108 bytes of sun_path
        reason, hint = "the path is too long for a socket", "use one of at most 107 bytes"
    else:
        reason = reason_of(error)
        hint = "give a path in a folder where files can be made"
    return UsageError(f"--monitor {path}: {reason}", hint)


def _remove_stale(path: Path) -> None:
    """Remove the socket at ``path`` if nobody listens there; else UsageError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"--monitor {path}: there is a file already", "give a path that is free")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # whose backlog is full is alive
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise UsageError(f"--monitor {path}: somebody listens there already", "give another path")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
