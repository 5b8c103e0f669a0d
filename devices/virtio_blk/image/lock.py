"""Image locks that pykvm and QEMU honour alike.

QEMU (block/file-posix.c) gives every permission on an image a number, and two
bytes of the file: byte 100 + n is locked by whoever *holds* permission n, and
byte 200 + n by whoever does *not share* it with others. All of these are
shared (read) locks of the open file description (F_OFD_SETLK), so taking them
never fails; who has taken its own then looks whether somebody else's are in
the way, and if so lets go again. The bytes need not exist in the file.

A disk of a VM holds CONSISTENT_READ, and WRITE unless it is read-only, and
shares everything but WRITE. So one writer excludes everybody else, and any
number of readers live together.
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
"""What filesystems without locks say: NFS without lockd, Lustre without flock, FUSE, gVisor."""

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""

_OFD_LOCK = re.compile(r"^lock:.*\bOFDLCK\b.* (\d+) (\d+|EOF)$", re.MULTILINE)


def lock(fd: int, path: str, readonly: bool, locking: Locking) -> str:
    """Lock the image open at ``fd``, until it is closed; UsageError if it is in use.

    ``path`` is for messages. A sentence for the user if there are no locks where
    there may be none, else "".
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
                f"the disk image {path} is in use: {holder} has locked it", "end that first"
            ) from None
        if error.errno not in _NO_LOCKS or locking is Locking.ON:
            raise UsageError(
                f"the disk image {path} cannot be locked: {reason_of(error)}",
                "put it on a filesystem that has locks, or give it locking=off "
                "and see to it that nobody else uses it",
            ) from None
        return (
            f"{path} is not locked, for its filesystem has no locks: "
            "see to it that nobody else uses it"
        )
    if not taken:
        return ""
    holder = find_holder(fd, taken) or "another process"
    if PERMISSION_BASE + WRITE in taken:
        raise UsageError(
            f"the disk image {path} is in use: {holder} writes to it",
            "end that first; a disk is shared only if all have readonly=on or snapshot=on",
        )
    raise UsageError(
        f"the disk image {path} is in use: {holder} reads it and must not see it change",
        "end that first, or give this disk readonly=on or snapshot=on",
    )


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _locked_by_another(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def find_holder(fd: int, bytes_taken: list[int]) -> str:
    """Who else has an OFD lock on one of ``bytes_taken`` of the file at ``fd``, or "".

    The kernel names no process for such a lock, but every process's
    descriptors tell which locks they carry. Those of other users are hidden.
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
        # Any bytes: a process may call itself what it likes.
        command = process.joinpath("comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        command = "gone meanwhile"
    return f"process {process.name} ({command})"
