"""Finds a VM's RAM in the memory of its process, by the guest's code.

This works for every kind of memory, shared or not. proc(5) describes the files.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pykvm.errors import HostError, PykvmError
from pykvm.x86.elf import parse_elf
from pykvm.x86.source import Source

ALIGNMENT: Final = 2 << 20
"""Inside a mapping, RAM begins at a multiple of this: at a huge page."""
PAGE: Final = 4096
CODE_SIZE: Final = 256
_PRESENT_OR_SWAPPED: Final = 3 << 62
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")


@dataclass(frozen=True, slots=True)
class Code:
    """Bytes of the guest's kernel that never change, at a guest-physical ``address``."""

    address: int
    data: bytes

    @classmethod
    def of(cls, kernel: Path) -> Self:
        """The first instructions of the ELF file ``kernel``; PykvmError if it has none."""
        with Source(kernel.read_bytes(), f"'{kernel}'", "--kernel") as source:
            elf = parse_elf(source)
            for segment in elf.segments:
                at = elf.entry - segment.address
                if 0 <= at <= segment.file_size - CODE_SIZE:
                    return cls(elf.entry, source.read(segment.offset + at, CODE_SIZE))
        raise PykvmError(f"'{kernel}' has no code at its entry point", "build it again")


class GuestRam:
    """The ``size`` bytes of RAM of the VM in process ``pid``, whose guest has ``code``.

    The RAM begins at address ``start`` of the process. It is gone when the process has ended.
    """

    def __init__(self, pid: int, size: int, code: Code) -> None:
        """LookupError if the process has no such RAM; OSError if it has ended; HostError if the
        host does not allow access to the process's memory."""
        folder = Path(f"/proc/{pid}")
        try:
            self._memory = os.open(folder / "mem", os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            raise _forbidden() from None
        try:
            pages = os.open(folder / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                for start in candidates((folder / "maps").read_text(errors="replace"), size):
                    if self._has(pages, start + code.address, code.data):
                        self.start = start
                        self.end = start + size
                        return
            finally:
                os.close(pages)
            raise LookupError(f"process {pid} has no RAM of a guest")
        except BaseException:
            self.close()
            raise

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes from guest-physical ``address``; OSError if the process has ended."""
        data = os.pread(self._memory, length, self.start + address)
        if len(data) != length:
            raise ProcessLookupError("the process has ended")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at guest-physical ``address``; OSError if the process has ended."""
        if os.pwrite(self._memory, data, self.start + address) != len(data):
            raise ProcessLookupError("the process has ended")

    def close(self) -> None:
        """Close the process's memory."""
        os.close(self._memory)

    def _has(self, pages: int, address: int, data: bytes) -> bool:
        """True if ``data`` are at ``address``. Reading allocates no page that is still missing."""
        for page in {address // PAGE, (address + len(data) - 1) // PAGE}:
            entry = os.pread(pages, 8, page * 8)
            if len(entry) < 8 or not struct.unpack("=Q", entry)[0] & _PRESENT_OR_SWAPPED:
                return False
        try:
            return os.pread(self._memory, len(data), address) == data
        except OSError:
            # Some mappings, such as those of devices, cannot be read this way.
            return False


def candidates(maps: str, size: int) -> Iterator[int]:
    """The addresses in /proc/PID/maps at which ``size`` bytes of RAM may begin.

    RAM may span several adjacent mappings, or be a part of one.
    """
    for starts, end in _runs(maps):
        aligned = range(-(-starts[0] // ALIGNMENT) * ALIGNMENT, end, ALIGNMENT)
        yield from (start for start in sorted({*starts, *aligned}) if start + size <= end)


def _runs(maps: str) -> Iterator[tuple[list[int], int]]:
    """Each run of adjacent mappings that can be read and written: their starts, and the end."""
    starts: list[int] = []
    end = 0
    for line in maps.splitlines():
        addresses, rights, *_ = line.split(" ", 2)
        if not rights.startswith("rw"):
            continue
        first, _, last = addresses.partition("-")
        if starts and int(first, 16) != end:
            yield starts, end
            starts = []
        starts.append(int(first, 16))
        end = int(last, 16)
    if starts:
        yield starts, end


def _forbidden() -> HostError:
    message = "the host does not let bench access the memory of a VM that it has started"
    scope = ""
    with suppress(OSError):
        scope = _YAMA.read_text().strip()
    if scope == "2":
        hint = "set it to 1 (sysctl), or run bench as root"
        return HostError(f"{message}: kernel.yama.ptrace_scope is 2", hint)
    if scope == "3":
        hint = "boot the host with it set to 1: it cannot be lowered later"
        return HostError(f"{message}: kernel.yama.ptrace_scope is 3", hint)
    return HostError(
        message, "allow this user to trace its own processes (rules of a container or of SELinux)"
    )
