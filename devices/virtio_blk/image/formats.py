"""Recognises image formats by their first bytes, so that none becomes a raw disk by mistake. Pure.

Only raw images are ever served. A recognised format opens no other file and
has no header parsed, because a guest can write any bytes into its disk. The
worst effect of such bytes is that the next run asks its user for ``format=raw``.
"""

from typing import Final

HEAD: Final = 4096
"""The bytes from the start of an image that are enough to recognise its format."""

_MAGICS: Final = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
)
"""The offset of a format's magic bytes, the bytes, and its name. The first match counts."""


_COMPRESSED: Final = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


def format_of(head: bytes) -> str:
    """The format of an image that begins with ``head``; "" if it may be raw."""
    for offset, magic, name in _MAGICS:
        if head.startswith(magic, offset):
            return name
    return ""


def compression_of(head: bytes) -> str:
    """The compression of an image that begins with ``head``; "" if it has none.

    Compressed data may be intended for a guest, so they are not refused.
    """
    return next((name for magic, name in _COMPRESSED if head.startswith(magic)), "")


def advice(name: str, path: str) -> str:
    """The hint for a user whose image at ``path`` has the format ``name``."""
    if name == "LUKS":
        return "if the guest does its encryption, add format=raw; else open it with cryptsetup"
    from shlex import quote

    return (
        f"convert it: qemu-img convert -O raw {quote(path)} disk.raw; "
        "if the guest wrote these bytes, add format=raw"
    )
