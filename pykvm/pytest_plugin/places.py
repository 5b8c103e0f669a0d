"""The bound of guests that run at once, over all processes of a user, such as those of xdist.

A file has a byte for each 64 MiB of memory that guests may use together. A guest locks as many
bytes as it needs, by locks of its open file, which the host's kernel releases when the file is
closed or its process dies (F_OFD_SETLK, fcntl(2)).
"""

import fcntl
import math
import os
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

UNIT: Final = 64 << 20
"""Bytes of memory for each byte of the file."""
PATIENCE_SECONDS: Final = 10.0
"""The longest wait of a process that has guests already. They could be those that others wait for,
so the process then goes on without a place. One without guests then tells that it waits."""
_POLL_SECONDS: Final = 0.02
_FLOCK: Final = "hhqqi0q"
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""
_DOOR: Final = 0
"""The byte that a process locks while it looks for free ones; those of guests come behind it."""


class Place:
    """The place of a guest. A context manager, whose end gives it back."""

    def __init__(self, places: "Places", fd: int) -> None:
        self._places = places
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Give the place back. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._places.taken -= 1


class Places:
    """Places for guests that use ``memory`` bytes together. ``taken`` are those of this object.

    ``folder`` has the file. Without a folder that can be written, there is no bound. ``say`` gets
    a sentence when a wait takes long.
    """

    def __init__(
        self, folder: str, memory: int, say: Callable[[str], object] = lambda text: None
    ) -> None:
        self.taken = 0
        self._say = say
        self._count = max(1, memory // UNIT)
        self._path = os.path.join(folder, "guests.lock") if folder else ""

    def take(self, memory: int) -> Place:
        """The place of a guest with ``memory`` bytes, when there is one."""
        self.taken += 1
        place = Place(self, self._open())
        try:
            wanted = min(self._count, max(1, -(-memory // UNIT)))
            deadline = time.monotonic() + PATIENCE_SECONDS
            while place._fd >= 0 and not self._locked(place._fd, wanted):
                if time.monotonic() > deadline:
                    if self.taken > 1:
                        break
                    self._say(
                        "a guest waits for the memory of other tests' guests; the ini option "
                        "pykvm_memory tells how much all of them may use"
                    )
                    deadline = math.inf
                time.sleep(_POLL_SECONDS)
        except OSError:  # a filesystem without locks: there is no bound
            return place
        except BaseException:
            place.give_back()
            raise
        return place

    def _open(self) -> int:
        if self._path:
            with suppress(OSError):
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _locked(self, fd: int, wanted: int) -> bool:
        """Lock ``wanted`` of the bytes; or none, if fewer are free."""
        with ExitStack() as stack:
            _lock(fd, _DOOR, fcntl.F_WRLCK, wait=True)
            stack.callback(_lock, fd, _DOOR, fcntl.F_UNLCK)
            found: list[int] = []
            for byte in range(1, self._count + 1):
                if _lock(fd, byte, fcntl.F_WRLCK):
                    found.append(byte)
                if len(found) == wanted:
                    return True
            for byte in found:
                _lock(fd, byte, fcntl.F_UNLCK)
            return False


def _lock(fd: int, byte: int, kind: int, wait: bool = False) -> bool:
    """Lock or unlock a byte; False if a different file has locked it."""
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
    except BlockingIOError:
        return False
    return True


def usable_memory() -> int:
    """Half of the memory of the host, or of this process's control group if that has less."""
    most = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    root = Path("/sys/fs/cgroup")
    with suppress(OSError, StopIteration):
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line for line in groups if line.startswith("0::")).removeprefix("0::/")
        for folder in (root / own, *(root / own).parents):
            with suppress(OSError, ValueError):
                most.append(int((folder / "memory.max").read_text()))
    return min(most) // 2
