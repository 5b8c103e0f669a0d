"""The files that a run writes, and the rules that keep it from destroying other files.

1. An output is opened at the start of a run, and keeps its content until :meth:`Output.begin`. So
   a run that fails before that changes no file.
2. An output must not be a file that the run reads, the file of a second output, or a file that a
   process has locked. Files are compared by device and inode, so links and /proc/self/fd hide
   nothing.
3. If standard output or standard error goes to the file, the output is appended through that
   stream, and the file is never emptied.
4. A named pipe must already have a reader. A block device cannot be an output.

Character devices, such as /dev/null and terminals, and sockets keep no data, and are not compared.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from pykvm.errors import UsageError, reason_of
from pykvm.lean.typing_names import Final, Self

_HINT: Final = "give a file that can be written"
_OTHER: Final = "give a different file"
_Identity = tuple[int, int]
_Path = os.PathLike[str] | str


class Output:
    """One file that a run writes. ``fd`` is open for writing and does not block (EAGAIN)."""

    def __init__(self, fd: int, path: str, *, created: bool, stream: bool) -> None:
        self.fd = fd
        self._path = path
        self._created = created
        self._stream = stream
        self._begun = False

    def begin(self) -> None:
        """Empty the file, unless it is a standard stream of this process. OSError."""
        self._begun = True
        if not self._stream and stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Close the file. Remove it if this run created it, never began it, and it is empty."""
        if self._created and not self._begun:
            with suppress(OSError):
                status = os.fstat(self.fd)
                if status.st_size == 0 and os.path.samestat(os.lstat(self._path), status):
                    os.unlink(self._path)
        os.close(self.fd)


class Outputs:
    """The outputs of one run. A context manager, which closes them."""

    def __init__(self, inputs: Iterable[_Path | int]) -> None:
        """``inputs`` are the paths of the files that the run reads; 0 is standard input."""
        self._inputs: dict[_Identity, str] = {}
        self._taken: dict[_Identity, str] = {}
        self._open: list[Output] = []
        for given in inputs:
            with suppress(OSError, ValueError):
                name = "standard input" if given == 0 else os.fspath(given)  # type: ignore[arg-type]
                if identity := _identity(os.stat(given)):
                    self._inputs.setdefault(identity, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._open:
            self._open.pop().close()

    def take_stream(self, fd: int, option: str) -> None:
        """Reserve the file behind the stream ``fd`` for ``option``: no output may go there."""
        with suppress(OSError):
            if identity := _identity(os.fstat(fd)):
                self._taken[identity] = option

    def check_streams(self) -> None:
        """UsageError if standard output or standard error goes to a file that the run reads."""
        for fd, name in ((1, "standard output"), (2, "standard error")):
            with suppress(OSError):
                status = os.fstat(fd)
                other = self._inputs.get(_identity(status) or (-1, -1), "standard input")
                # Standard input and output may be one terminal, socket or log.
                if other != "standard input":
                    raise _overwrites(name, other)

    def check(self, path: _Path, option: str) -> None:
        """UsageError if ``path``, the value of ``option``, is an input or an output."""
        with suppress(OSError, ValueError):
            self._compare(os.stat(path), f"{option} {os.fspath(path)}")

    def open(self, path: _Path, option: str, *, alone: bool = False) -> Output:
        """Open ``path``, the value of ``option``, for writing; UsageError.

        ``alone``: accept only a regular file to which no standard stream goes.
        """
        name = os.fspath(path)
        shown = f"{option} {name}"
        if name == "-":
            hint = "write /dev/stdout for standard output, and ./- for a file of that name"
            raise UsageError(f"{shown} is not a path", hint)
        try:
            before = os.stat(name)
        except FileNotFoundError:
            before = None
        except (OSError, ValueError) as error:
            raise _unusable(shown, error) from None
        stream = _stream_of(before) if before else None
        if alone and (stream is not None or (before and not stat.S_ISREG(before.st_mode))):
            raise UsageError(f"{shown} is not a separate regular file", _OTHER)
        fd = _open(name, shown, before) if stream is None else os.dup(stream)
        made = Output(fd, name, created=before is None, stream=stream is not None)
        try:
            status = os.fstat(fd)
            self._compare(status, shown)
            if stream is None and stat.S_ISREG(status.st_mode) and _is_locked(fd):
                raise UsageError(f"{shown} is in use: a process has locked it", _OTHER)
        except BaseException:
            made.close()
            raise
        if identity := _identity(status):
            self._taken[identity] = shown
        self._open.append(made)
        return made

    def _compare(self, status: os.stat_result, shown: str) -> None:
        identity = _identity(status)
        if identity is None:
            return
        if identity in self._inputs:
            raise _overwrites(shown, self._inputs[identity])
        if identity in self._taken:
            raise UsageError(f"{shown} and {self._taken[identity]} are the same file", _OTHER)


def _identity(status: os.stat_result) -> _Identity | None:
    """A value that is equal for the same file; None if the kind of file does not matter."""
    if stat.S_ISCHR(status.st_mode) or stat.S_ISSOCK(status.st_mode):
        return None
    if stat.S_ISBLK(status.st_mode):
        return -2, status.st_rdev  # a device may have several nodes
    return status.st_dev, status.st_ino


def _stream_of(status: os.stat_result) -> int | None:
    """The standard output or standard error that goes to the same file; None if neither does."""
    # Few runs need it.
    import fcntl

    for fd in (1, 2):
        with suppress(OSError):
            writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if writable and os.path.samestat(os.fstat(fd), status):
                return fd
    return None


def _open(path: str, shown: str, before: os.stat_result | None) -> int:
    mode = before.st_mode if before else 0
    if stat.S_ISBLK(mode):
        raise UsageError(f"{shown} is a block device", _HINT)
    if stat.S_ISSOCK(mode):
        raise UsageError(f"{shown} is a socket", _HINT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
            raise UsageError(
                f"{shown}: this pipe has no reader", "start the reader first"
            ) from None
        raise _unusable(shown, error) from None


def _is_locked(fd: int) -> bool:
    """True if a process has locked a byte of this file, as users of disk images do."""
    import fcntl
    import struct

    flock = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, flock)
    except OSError:
        return False  # a filesystem without locks
    kind: int = struct.unpack_from("@h", answer)[0]
    return kind != fcntl.F_UNLCK


def _overwrites(shown: str, other: str) -> UsageError:
    return UsageError(f"{shown} would overwrite {other}, which this run reads", _OTHER)


def _unusable(shown: str, error: Exception) -> UsageError:
    reason = reason_of(error) if isinstance(error, OSError) else str(error)
    return UsageError(f"{shown}: {reason}", _HINT)
