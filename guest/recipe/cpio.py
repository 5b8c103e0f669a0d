"""The initial ramdisk as an uncompressed cpio archive ("newc"), the same bytes for the same input.

Uncompressed, because the guest's kernel would do the decompressing, and on hosts that emulate
kernel code that takes longer than the whole rest of the boot. Format: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
from dataclasses import dataclass

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """One member: `mode` holds type and permissions; `device` is (major, minor) of a device."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o755) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device's node."""
    return Entry(name, stat.S_IFCHR | permissions, b"", (major, minor))


def archive(entries: list[Entry]) -> bytes:
    """The archive, in the order given: a directory has to come before what is in it.

    Owner and group are root, and every time stamp is 0. Raises ValueError for a name that occurs
    twice or is not relative.
    """
    output = bytearray()
    seen: set[str] = set()
    for inode, entry in enumerate(entries, 1):
        if entry.name in seen or entry.name.startswith("/") or not entry.name:
            raise ValueError(f"the ramdisk cannot hold an entry {entry.name!r} (again)")
        seen.add(entry.name)
        output += _member(entry, inode)
    output += _member(Entry(_TRAILER, 0), 0)
    output += bytes(-len(output) % _BLOCK)
    return bytes(output)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0
    )  # fmt: skip
    header = (_MAGIC + "".join(f"{field:08x}" for field in fields)).encode() + name
    header += bytes(-len(header) % 4)
    return header + entry.data + bytes(-len(entry.data) % 4)
