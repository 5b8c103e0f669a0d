"""Files that a run writes, and the rules by which no other file is lost for them.

1. An output is opened before anything is done, and keeps what it holds until :meth:`Output.begin`:
   a run that fails before it begins changes no file.
2. It is none of the files that the run reads, and no other output. Files are compared by device
   and inode, so links and /proc/self/fd hide nothing. Nor is it a file that somebody has locked.
3. A file that standard output or standard error goes to is written through that stream, after
   what is there, and never emptied.
4. A named pipe needs a reader by then. A block device is no output.

Character devices, such as /dev/null and terminals, and sockets lose nothing and are not compared.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from pykvm.errors import UsageError, reason_of
from pykvm.lean.typing_names import Final, Self

_HINT: Final = "give a file that can be written"
_OTHER: Final = "give another file"
_Identity = tuple[int, int]
_Path = os.PathLike[str] | str


class Output:
    """One file that a run writes: ``fd`` is open for writing, and waits for nobody (EAGAIN)."""

    def __init__(self, fd: int, path: str, *, created: bool, stream: bool) -> None:
        self.fd = fd
        self._path = path
        self._created = created
        self._stream = stream
        self._begun = False

    def begin(self) -> None:
        """Empty it, unless it is a stream of ours. OSError."""
        self._begun = True
        if not self._stream and stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Close it; remove it if it was made for a run that never began, and nobody wrote to it."""
        if self._created and not self._begun:
            with suppress(OSError):
                status = os.fstat(self.fd)
                if status.st_size == 0 and os.path.samestat(os.lstat(self._path), status):
                    os.unlink(self._path)
        os.close(self.fd)


class Outputs:
    """The outputs of one run, beside what it reads. A context that closes them."""

    def __init__(self, inputs: Iterable[_Path | int]) -> None:
        """``inputs`` are paths of what the run reads; 0 is standard input."""
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

    def take_stream(self, fd: int, what: str) -> None:
        """No other output may go to the file that the stream ``fd`` goes to: ``what`` does."""
        with suppress(OSError):
            if identity := _identity(os.fstat(fd)):
                self._taken[identity] = what

    def check_streams(self) -> None:
        """UsageError if standard output or standard error goes to a file that the run reads."""
        for fd, name in ((1, "standard output"), (2, "standard error")):
            with suppress(OSError):
                status = os.fstat(fd)
                other = self._inputs.get(_identity(status) or (-1, -1), "standard input")
                # What is read from there may be what goes there: a terminal, a socket, a log.
                if other != "standard input":
                    raise _overwrites(name, other)

    def check(self, path: _Path, what: str) -> None:
        """UsageError if the file at ``path``, which ``what`` names, is an input or an output."""
        with suppress(OSError, ValueError):
            self._compare(os.stat(path), f"{what} {os.fspath(path)}")

    def open(self, path: _Path, what: str, *, alone: bool = False) -> Output:
        """Open ``path``, the value of ``what`` (an option); UsageError.

        ``alone``: nothing but a regular file will do, and none that a standard stream goes to.
        """
        name = os.fspath(path)
        shown = f"{what} {name}"
        if name == "-":
            hint = "standard output is /dev/stdout, and a file of that name ./-"
            raise UsageError(f"{shown} names no file", hint)
        try:
            before = os.stat(name)
        except FileNotFoundError:
            before = None
        except (OSError, ValueError) as error:
            raise _unusable(shown, error) from None
        stream = _stream_of(before) if before else None
        if alone and (stream is not None or (before and not stat.S_ISREG(before.st_mode))):
            raise UsageError(f"{shown} would not be a regular file of its own", _OTHER)
        fd = _open(name, shown, before) if stream is None else os.dup(stream)
        made = Output(fd, name, created=before is None, stream=stream is not None)
        try:
            status = os.fstat(fd)
            self._compare(status, shown)
            if stream is None and stat.S_ISREG(status.st_mode) and _is_locked(fd):
                raise UsageError(f"{shown} is in use: somebody has locked it", _OTHER)
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
    """What makes a file the same one; None if that does not matter."""
    if stat.S_ISCHR(status.st_mode) or stat.S_ISSOCK(status.st_mode):
        return None
    if stat.S_ISBLK(status.st_mode):
        return -2, status.st_rdev  # however many nodes it has
    return status.st_dev, status.st_ino


def _stream_of(status: os.stat_result) -> int | None:
    """Which of standard output and standard error goes to the same file, if one does."""
    # fcntl is small, and few runs come here.
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
            raise UsageError(f"{shown}: nobody reads this pipe", "start its reader first") from None
        raise _unusable(shown, error) from None


def _is_locked(fd: int) -> bool:
    """Whether another open file has a lock on a byte of this one, as disk images have."""
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
