"""Image locks that pykvm and QEMU honour alike.

QEMU (block/file-posix.c) gives each permission on an image a number n and two
bytes of the file. A process that *holds* permission n locks byte 100 + n. A
process that does *not share* permission n locks byte 200 + n. All of these are
shared (read) locks of the open file description (F_OFD_SETLK), so taking them
never fails. A process takes its own locks first, then checks for locks of other
processes that conflict with them, and releases its own if there are any. The
bytes need not exist in the file.

The disk of a VM holds CONSISTENT_READ, and WRITE unless it is read-only. It
shares everything but WRITE. So a writer excludes every other user, and any
number of readers can use an image together.
"""

import errno
import fcntl
import os
import re
import struct
from pathlib import Path
from typing import Final

from pykvm.devices.virtio_blk.modes import Locking
from pykvm.errors import UsageError, reason_of

CONSISTENT_READ = 0
WRITE = 1

PERMISSION_BASE = 100
UNSHARED_BASE = 200

_NO_LOCKS: Final = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))
"""Errors of filesystems without locks: NFS without lockd, Lustre without flock, FUSE, gVisor."""

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""

_OFD_LOCK = re.compile(r"^lock:.*\bOFDLCK\b.* (\d+) (\d+|EOF)$", re.MULTILINE)


def lock(fd: int, path: str, readonly: bool, locking: Locking) -> str:
    """Lock the image open at ``fd``, until it is closed; UsageError if it is in use.

    ``path`` is for messages. Returns a sentence for the user if the filesystem
    has no locks and ``locking`` allows that, else "".
    """
    if locking is Locking.OFF:
        return ""
    held = (CONSISTENT_READ,) if readonly else (CONSISTENT_READ, WRITE)
    own = [PERMISSION_BASE + permission for permission in held] + [UNSHARED_BASE + WRITE]
    against = [UNSHARED_BASE + permission for permission in held] + [PERMISSION_BASE + WRITE]
    try:
        for byte in own:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        taken = [byte for byte in against if _locked_by_another(fd, byte)]
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # POSIX allows either
            holder = find_holder(fd, own) or "another program"
            raise UsageError(
                f"the disk image {path} is in use: {holder} has locked it", "end that program first"
            ) from None
        if error.errno not in _NO_LOCKS or locking is Locking.ON:
            raise UsageError(
                f"the disk image {path} cannot be locked: {reason_of(error)}",
                "put it on a filesystem that has locks, or give it locking=off "
                "and make sure that no other program uses it",
            ) from None
        return (
            f"{path} is not locked, because its filesystem has no locks: "
            "make sure that no other program uses it"
        )
    if not taken:
        return ""
    holder = find_holder(fd, taken) or "another process"
    if PERMISSION_BASE + WRITE in taken:
        raise UsageError(
            f"the disk image {path} is in use: {holder} writes to it",
            "end that process first; only disks with readonly=on or snapshot=on can share an image",
        )
    raise UsageError(
        f"the disk image {path} is in use: {holder} reads it and must not see it change",
        "end that process first, or give this disk readonly=on or snapshot=on",
    )


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _locked_by_another(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def find_holder(fd: int, bytes_taken: list[int]) -> str:
    """The process with an OFD lock on one of ``bytes_taken`` of the file at ``fd``, or "".

    The kernel names no process for such a lock. But ``/proc`` lists the locks of
    each descriptor, except for processes of other users.
    """
    wanted = os.fstat(fd)
    own = f"/proc/{os.getpid()}/fd/{fd}"
    for directory in Path("/proc").glob("[0-9]*/fd"):
        try:
            entries = list(directory.iterdir())
        except OSError:
            continue
        for entry in entries:
            if str(entry) != own and _carries(entry, wanted, bytes_taken):
                return _name(directory.parent)
    return ""


def _carries(entry: Path, wanted: os.stat_result, bytes_taken: list[int]) -> bool:
    try:
        if not os.path.samestat(entry.stat(), wanted):
            return False
        info = entry.parent.parent.joinpath("fdinfo", entry.name).read_text()
    except OSError:
        return False  # it went away, or belongs to another user
    for first, last in _OFD_LOCK.findall(info):
        end = int(last) if last != "EOF" else max(bytes_taken)
        if any(int(first) <= byte <= end for byte in bytes_taken):
            return True
    return False


def _name(process: Path) -> str:
    if process.name == str(os.getpid()):
        return "this process"
    try:
        # A process can give itself a name of any bytes.
        command = process.joinpath("comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        command = "which has ended"
    return f"process {process.name} ({command})"
