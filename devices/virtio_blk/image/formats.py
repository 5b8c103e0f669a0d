"""Image formats by their first bytes, so that none is taken for a raw disk by mistake. Pure.

Nothing but raw is ever served, and what the bytes look like opens no file and
reads no header: a guest can write any bytes that it likes into its disk. The
worst that a guest can reach in this way is that the next run asks its user to
say ``format=raw``.
"""

from typing import Final

HEAD: Final = 4096
"""So many bytes of an image, or all of a smaller one, are enough to tell."""

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
"""Where a format's magic bytes are, these, and its name. The first that fits counts."""


_COMPRESSED: Final = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


def format_of(head: bytes) -> str:
    """The format of an image that begins with ``head``; "" if nothing speaks against raw."""
    for offset, magic, name in _MAGICS:
        if head.startswith(magic, offset):
            return name
    return ""


def compression_of(head: bytes) -> str:
    """What compressed an image that begins with ``head``; "" if nothing did.

    Such data may well be meant to reach a guest, and are no other kind of disk.
    """
    return next((name for magic, name in _COMPRESSED if head.startswith(magic)), "")


def advice(name: str, path: str) -> str:
    """What to do about the image of the format ``name`` at ``path``."""
    if name == "LUKS":
        return "if its guest encrypts it by itself, add format=raw; else open it with cryptsetup"
    from shlex import quote

    return (
        f"convert it: qemu-img convert -O raw {quote(path)} disk.raw; "
        "if these bytes are the guest's own, add format=raw"
    )
