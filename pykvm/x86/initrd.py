"""Checks the initrd, and puts it into guest RAM."""

from pykvm.errors import UsageError
from pykvm.memory import Ram
from pykvm.x86.identify import INITRD, identify, wrong_file
from pykvm.x86.layout import MIB, PAGE
from pykvm.x86.source import Source


def place_initrd(
    ram: Ram, source: Source, first: int, end: int, above_4g: bool, linux: bool
) -> tuple[int, int]:
    """Read ``source`` into RAM; return its guest-physical (start, end).

    It goes as high as possible below ``end`` and above ``first``, the kernel's
    end, so that there is one free range between the two. It goes above 4 GiB only
    if it fits nowhere else and ``above_4g`` allows it. ``linux``: refuse files that
    are plainly not an initrd; other kernels take any module. UsageError if the file
    is refused, is empty, or does not fit.
    """
    if not source.size:
        raise UsageError(f"{source.name} is empty", "--initrd takes a cpio archive")
    if linux:
        _check(source)
    low = ram.regions[0]
    start = _below(min(end, low.end), source.size)
    floor = first
    if start < floor and above_4g and len(ram.regions) > 1:
        start, floor = _below(ram.regions[1].end, source.size), ram.regions[1].start
    if start < floor:
        needed = -(-(first + source.size) // MIB) + 1
        raise UsageError(
            f"{source.name} ({-(-source.size // MIB)} MiB) does not fit into guest memory"
            f" beside the kernel, which ends at {first:#x}",
            f"give at least -m {needed}M, or a smaller initrd",
        )
    offset = ram.translate(start, source.size)
    with ram.bytes[offset : offset + source.size] as view:
        source.readinto(0, view)
    return start, start + source.size


def _below(end: int, size: int) -> int:
    return (end - size) & -PAGE


def _check(source: Source) -> None:
    """Refuse files that are plainly not an archive. Linux judges files of unknown kinds."""
    identity = identify(source)
    if identity is None or identity.option == INITRD or identity.generic:
        return
    raise wrong_file(source, "a cpio archive")
