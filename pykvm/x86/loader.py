"""Puts a kernel, its initrd, its command line and the boot data into guest RAM.

The choice of the entry:

- A Linux kernel (64-bit ELF, bare or inside a bzImage) is entered at e_entry, the
  64-bit entry. If it has a PVH note, that is not used: the PVH entry runs more kernel
  code before it arrives at the same place, because it builds page tables and boot
  parameters, and it takes no initrd above 4 GiB. A Linux kernel has a note with the
  owner ``Linux``, or its banner in the image.
- Any other file with a PVH note, 32-bit or 64-bit, is entered through that note.
- An ELF file that is neither is refused. Linux's protocol would be a guess, and almost
  every such file is an ordinary program.

Modules that only some kernels need are imported for those, because start-up time counts.
"""

import os
from collections.abc import Callable

from pykvm.errors import UsageError
from pykvm.lean.records import record
from pykvm.memory import Ram
from pykvm.memory.guest import HOLE_START
from pykvm.x86 import bootparams, layout, mptable, pvh
from pykvm.x86.bzimage import BzImage, is_bzimage, parse_bzimage
from pykvm.x86.cpu import EntryState, long_mode_entry, pvh_entry
from pykvm.x86.elf import ET_DYN, Elf, has_linux_banner, parse_elf
from pykvm.x86.source import Source, open_source

LINUX64, PVH = "linux64", "pvh"
LINUX_COMMAND_LINE = 2047
"""The limit of x86 Linux (COMMAND_LINE_SIZE less the NUL), if no header has a different one."""
WANTED = "an x86-64 vmlinux or bzImage, or an ELF file with a PVH note"

FileLike = bytes | str | os.PathLike[str]


@record
class LoadedKernel:
    """A kernel in guest RAM. Ranges are guest-physical (start, end), end exclusive.

    ``kind`` is ``linux64`` or ``pvh``; ``entry`` is the boot vCPU's state;
    ``description`` one line for the user.
    """

    entry: EntryState
    kind: str
    description: str
    kernel: tuple[int, int]
    initrd: tuple[int, int] | None


@record
class _Kernel:
    """A parsed kernel file: the ELF file to load, and its entry."""

    source: Source
    elf: Elf
    kind: str
    entry: int
    header: BzImage | None
    description: str


def load_kernel(
    ram: Ram,
    kernel: FileLike,
    *,
    initrd: FileLike | None = None,
    command_line: str | Callable[[str], str] = "",
    cpus: int = 1,
    reserved: int = 0,
) -> LoadedKernel:
    """Load ``kernel``, a path or the file's content, and its boot data into ``ram``.

    ``command_line`` may be a function of the kernel's kind (see LoadedKernel).
    The kernel leaves the last ``reserved`` bytes of the RAM below 4 GiB alone. ``ram`` must be all
    zeros, as that of a new VM. UsageError, which names the option, for any fault of a file, a size
    or the line.
    """
    if not 1 <= cpus <= mptable.MAX_CPUS:
        raise UsageError(
            f"a guest cannot have {cpus} CPUs", f"give --cpus from 1 to {mptable.MAX_CPUS}"
        )
    if ram.translate(0, layout.HIGH_MEMORY + reserved) < 0:
        raise UsageError("a guest needs at least 1 MiB of memory", "give it more with -m")
    with open_source(kernel, "--kernel") as source:
        image = _parse(source)
        text = command_line if isinstance(command_line, str) else command_line(image.kind)
        line = _encode(text, image)
        span = _load_segments(ram, image, ram.regions[0].end - reserved)
    ramdisk = None
    if initrd is not None:
        from pykvm.x86.initrd import place_initrd

        with open_source(initrd, "--initrd") as source:
            end, *kind = _initrd_limits(image)
            end = min(end, ram.regions[0].end - reserved)
            ramdisk = place_initrd(ram, source, span[1], end, *kind)
    ram.write(layout.COMMAND_LINE, line)
    _write_mp_table(ram, cpus)
    entry = _write_entry(ram, image, ramdisk, reserved)
    return LoadedKernel(entry, image.kind, image.description, span, ramdisk)


def _parse(source: Source) -> _Kernel:
    head = source.read(0, 0x206)
    if is_bzimage(head):
        from pykvm.x86.payload import unpack

        header = parse_bzimage(source)
        packed = source.read(header.payload_offset, header.payload_length)
        what = f"the kernel inside {source.name}"
        unpacked, compression = unpack(packed, what)
        inner = Source(unpacked, what, source.option)
        label = f"Linux {header.release}".rstrip() + f" bzImage ({compression})"
        return _choose_entry(inner, parse_elf(inner), header, label)
    if not head.startswith(b"\x7fELF"):
        from pykvm.x86.identify import wrong_file

        raise wrong_file(source, WANTED)
    elf = parse_elf(source)
    return _choose_entry(source, elf, None, f"{elf.bits}-bit ELF")


def _choose_entry(source: Source, elf: Elf, header: BzImage | None, label: str) -> _Kernel:
    linux = elf.linux_note or header is not None
    if elf.bits == 64 and elf.type != ET_DYN and (linux or has_linux_banner(source, elf)):
        kind, entry = LINUX64, elf.entry
        label += ", 64-bit entry"
    elif elf.pvh_entry is not None:
        kind, entry = PVH, elf.pvh_entry
        label += ", PVH entry"
    else:
        raise _no_entry(source, elf)
    if not any(segment.address <= entry < segment.end for segment in elf.segments):
        raise UsageError(
            f"{source.name} has its {kind} entry at {entry:#x}, outside its segments",
            "it is damaged, or not a kernel",
        )
    return _Kernel(source, elf, kind, entry, header, label)


def _no_entry(source: Source, elf: Elf) -> UsageError:
    if elf.type == ET_DYN:
        what = "a shared library or an ordinary program"
    elif elf.bits == 32:
        what = "a 32-bit ELF file without a PVH note"
    else:
        what = "a 64-bit ELF file that is not Linux and has no PVH note"
    return UsageError(f"{source.name} is {what}", f"--kernel takes {WANTED}")


def _encode(command_line: str, image: _Kernel) -> bytes:
    """The command line with its NUL."""
    try:
        line = os.fsencode(command_line)
    except UnicodeEncodeError:
        raise UsageError("the command line is not text", "check --append") from None
    if b"\0" in line:
        raise UsageError("the command line has a NUL in it", "check --append")
    limit = layout.COMMAND_LINE_SPACE - 1
    if image.kind == LINUX64:
        own = image.header.command_line_limit if image.header else LINUX_COMMAND_LINE
        limit = min(limit, own)
    if len(line) > limit:
        raise UsageError(
            f"the command line has {len(line)} bytes, and the kernel takes {limit}",
            "shorten --append",
        )
    return line + b"\0"


def _load_segments(ram: Ram, image: _Kernel, limit: int) -> tuple[int, int]:
    """Copy the segments to RAM below ``limit``; return their range, first to last byte."""
    source, segments = image.source, image.elf.segments
    start = min(segment.address for segment in segments)
    end = max(segment.end for segment in segments)
    if end > HOLE_START:
        last = max(segments, key=lambda segment: segment.end)
        raise UsageError(
            f"{source.name} loads a part to {last.address:#x}-{last.end:#x},"
            " where no guest has memory",
            "link it to run below 3 GiB",
        )
    if end > limit:
        needed = -(-end // layout.MIB)
        raise UsageError(
            f"{source.name} needs {needed} MiB of memory,"
            f" and the guest has {ram.regions[0].end // layout.MIB}",
            f"give at least -m {needed}M, better twice that",
        )
    for segment in segments:
        for low, high in layout.BOOT_DATA:
            if segment.address < high and segment.end > low:
                raise UsageError(
                    f"{source.name} loads a part at {segment.address:#x},"
                    f" over the boot data at {low:#x}-{high:#x}",
                    "link it to run at 1 MiB or above",
                )
        offset = ram.translate(segment.address, segment.memory_size)
        with ram.bytes[offset : offset + segment.file_size] as view:
            source.readinto(segment.offset, view)
    return start, end


def _initrd_limits(image: _Kernel) -> tuple[int, bool, bool]:
    """(end that the initrd must stay below, may lie above 4 GiB, is for Linux)."""
    if image.kind == PVH:
        # Linux's PVH entry keeps 32 bits of a module's address, and other kernels may, too.
        return 1 << 32, False, image.header is not None
    if image.header is None:
        return 1 << 32, True, True
    return image.header.initrd_end, image.header.above_4g, True


def _write_mp_table(ram: Ram, cpus: int) -> None:
    ram.write(layout.MP_TABLE, mptable.configuration(cpus))
    ram.write(layout.MP_FLOATING_POINTER, mptable.floating_pointer(layout.MP_TABLE))


def _write_entry(
    ram: Ram, image: _Kernel, initrd: tuple[int, int] | None, reserved: int
) -> EntryState:
    memory = layout.memory_map(ram.regions, reserved)
    if image.kind == PVH:
        info = pvh.build(layout.PVH_START_INFO, memory, layout.COMMAND_LINE, initrd)
        ram.write(layout.PVH_START_INFO, info)
        return pvh_entry(ram, image.entry, layout.PVH_START_INFO)
    header = image.header.setup_header if image.header else b""
    page = bootparams.build(memory, layout.COMMAND_LINE, initrd, header)
    ram.write(layout.BOOT_PARAMS, page)
    return long_mode_entry(ram, image.entry, layout.BOOT_PARAMS)
