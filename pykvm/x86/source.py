"""The bytes of a kernel or an initrd, from a file, a pipe or memory.

Files are read straight into guest RAM with pread. If they were mapped, a file that is
truncated meanwhile would cause a SIGBUS instead of an error.
"""

import os
import stat

from pykvm.errors import UsageError, reason_of
from pykvm.lean.typing_names import Self

MAX_PIPE = 1 << 30
"""The largest number of bytes that is read from a pipe."""


class Source:
    """Random access to immutable bytes. Messages use ``name`` and ``option``, which gave it."""

    def __init__(self, data: bytes, name: str, option: str) -> None:
        self.name = name
        self.option = option
        self.size = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` ≥ 0; fewer only at the end."""
        return self._data[offset : offset + length]

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; UsageError if the source ends earlier."""
        data = memoryview(self._data)[offset : offset + len(view)]
        if len(data) != len(view):
            raise self.truncated()
        view[:] = data

    def truncated(self) -> UsageError:
        """The error for data that end too early."""
        return UsageError(f"{self.name} ends too early", "it is damaged; build or copy it again")

    def close(self) -> None:
        """Release the source's resources."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FileSource(Source):
    """A regular file; owns ``fd``."""

    def __init__(self, fd: int, size: int, name: str, option: str) -> None:
        super().__init__(b"", name, option)
        self.size = size
        self._fd = fd

    def read(self, offset: int, length: int) -> bytes:
        """As :meth:`Source.read`; UsageError if the host cannot read the file."""
        length = max(0, min(length, self.size - offset))
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            self.readinto(offset, view)
        return bytes(buffer)

    def readinto(self, offset: int, view: memoryview) -> None:
        """As :meth:`Source.readinto`; UsageError if the host cannot read the file."""
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    raise self.truncated()
                done += count
        except (OSError, OverflowError) as error:
            raise UsageError(f"{self.option}: cannot read {self.name}: {error}") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def open_source(given: bytes | str | os.PathLike[str], option: str) -> Source:
    """The source that the user gave to ``option``; UsageError if it cannot be read.

    ``given`` is the content itself, or the path of a regular file or a pipe.
    """
    if isinstance(given, bytes | bytearray | memoryview):
        return Source(bytes(given), f"the {option.lstrip('-')}", option)
    path = os.fspath(given)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(f"there is no file '{path}'", f"give {option} an existing file") from None
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot open '{path}': {reason}", f"check {option}") from None
    try:
        return _source_of(fd, path, option)
    except BaseException:
        os.close(fd)
        raise


def _source_of(fd: int, path: str, option: str) -> Source:
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return FileSource(fd, status.st_size, f"'{path}'", option)
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"'{path}' is a directory", f"{option} takes a file")
    if stat.S_ISBLK(status.st_mode):
        raise UsageError(f"'{path}' is a block device", f"give it to --disk, not to {option}")
    if not stat.S_ISFIFO(status.st_mode):
        raise UsageError(f"'{path}' is not a regular file", f"{option} takes a file or a pipe")
    pieces = []
    left = MAX_PIPE
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise UsageError(f"'{path}' has more than {MAX_PIPE >> 20} MiB to read")
    os.close(fd)
    return Source(b"".join(pieces), f"'{path}'", option)
