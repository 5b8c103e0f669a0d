"""Names the kind of a file that an option cannot take, by its first bytes.

Used only for error messages, so never for a file of the right kind.
"""

from pykvm.errors import UsageError
from pykvm.lean.records import record
from pykvm.x86.payload import compression, peek
from pykvm.x86.source import Source

_CPIO = (b"070701", b"070702", b"070707", b"\xc7\x71")
_HEAD = 64 << 10
_LZ4_BLOCK = 9 << 20
"""Enough for the whole first block of an lz4 legacy frame, which cannot be unpacked in part."""

DISK, KERNEL, INITRD = "--disk", "--kernel", "--initrd"

# (offset, magic, kind of file, the option that takes it)
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0x202, b"HdrS", "a Linux kernel (bzImage)", KERNEL),
    (0x38, b"ARM\x64", "a Linux kernel for arm64 (Image)", ""),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V (Image)", ""),
    (4, b"zimg", "a compressed kernel in an EFI program (zboot)", ""),
    (0, b"QFI\xfb", "a qcow2 disk image", DISK),
    (0, b"KDMV", "a VMDK disk image", DISK),
    (0, b"# Disk DescriptorFile", "a VMDK disk image", DISK),
    (0, b"vhdxfile", "a VHDX disk image", DISK),
    (0, b"conectix", "a VHD disk image", DISK),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI disk image", DISK),
    (512, b"EFI PART", "a disk image (with a GPT)", DISK),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system", DISK),
    (0, b"XFSB", "an XFS file system", DISK),
    (0, b"hsqs", "a squashfs file system", DISK),
    (0x8001, b"CD001", "a CD image (ISO 9660)", DISK),
    (0, b"MZ", "an EFI or Windows program", ""),
    (0x1FE, b"\x55\xaa", "a disk image (with a boot sector)", DISK),
    (0, b"!<arch>\n", "an ar archive, such as a Debian package", ""),
    (0, b"\xed\xab\xee\xdb", "an RPM package", ""),
    (0, b"PK\x03\x04", "a zip archive", ""),
    (0, b"ANDROID!", "an Android boot image", ""),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", ""),
    (0, b"#!", "a script", ""),
)


@record
class Identity:
    """The kind of a file, with its article, and the option that takes it ("" if none does).

    ``generic``: compressed data with unknown content.
    """

    what: str
    option: str
    generic: bool = False


def identify(source: Source) -> Identity | None:
    """The kind of ``source``; None if its first bytes are unknown."""
    head = source.read(0, _HEAD)
    if not head:
        return Identity("empty", "")
    if head.startswith(_CPIO):
        return Identity("an initrd (a cpio archive)", INITRD)
    if head.startswith(b"\x7fELF"):
        return Identity("an ELF file", KERNEL)
    if name := compression(head):
        return _compressed(source, head, name)
    for offset, magic, what, option in _MAGICS:
        if head.startswith(magic, offset):
            return Identity(what, option)
    if source.read(0x10040, 8) == b"_BHRfS_M":
        return Identity("a btrfs file system", DISK)
    if head.isascii() and head[:512].decode("ascii").replace("\n", "").isprintable():
        return Identity("a text file", "")
    return None


def _compressed(source: Source, head: bytes, name: str) -> Identity:
    inner = peek(source.read(0, _LZ4_BLOCK) if name == "lz4" else head)
    if inner.startswith(_CPIO):
        return Identity(f"an initrd (a cpio archive, {name})", INITRD)
    if inner.startswith(b"\x7fELF"):
        return Identity(f"an ELF file compressed with {name}", "")
    if inner[257:262] == b"ustar":
        return Identity(f"a tar archive ({name})", "")
    return Identity(f"a file compressed with {name}", "", generic=True)


def wrong_file(source: Source, wanted: str) -> UsageError:
    """The error for a ``source`` that its option cannot take; the option takes ``wanted``."""
    identity = identify(source)
    takes = f"{source.option} takes {wanted}"
    if identity is None:
        return UsageError(f"{source.name}, given to {source.option}, is of an unknown kind", takes)
    if identity.option and identity.option != source.option:
        takes = f"give it to {identity.option}; {takes}"
    elif identity.what.startswith("an ELF file compressed"):
        takes = f"uncompress it first; {takes}"
    return UsageError(f"{source.name}, given to {source.option}, is {identity.what}", takes)
