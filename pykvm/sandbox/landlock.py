"""Landlock: forbids access to files by their paths.

A seccomp filter forbids a system call. Landlock forbids the access, by whatever call, io_uring
included. It holds for the calling thread and for the threads that it starts.

The structures and numbers are those of <linux/landlock.h>. The kernel's
Documentation/userspace-api/landlock.rst lists the news of each version of the interface, and
describes how a program supports older versions.
"""

import errno
import os
from struct import Struct

from pykvm.errors import HostError, error_text
from pykvm.host.libc import system_call
from pykvm.lean.typing_names import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_NR_CREATE_RULESET: Final = 444
_NR_ADD_RULE: Final = 445
_NR_RESTRICT_SELF: Final = 446

_CREATE_RULESET_VERSION: Final = 1 << 0
_RULE_PATH_BENEATH: Final = 1

_FS_WRITE_FILE: Final = 1 << 1
_FS_READ_FILE: Final = 1 << 2
_FS_READ_DIR: Final = 1 << 3
_FS_REMOVE_DIR: Final = 1 << 4
_FS_REMOVE_FILE: Final = 1 << 5
_FS_MAKE_DIR: Final = 1 << 7
_FS_MAKE_REG: Final = 1 << 8
_FS_TRUNCATE: Final = 1 << 14
_FS_TRUNCATE_VERSION: Final = 3
_FS_FOR_FILES: Final = (
    _FS_WRITE_FILE
    | _FS_READ_FILE
    | _FS_READ_DIR
    | _FS_REMOVE_DIR
    | _FS_REMOVE_FILE
    | _FS_MAKE_DIR
    | _FS_MAKE_REG
)
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""The number of access rights for files from each version on. The rights are bits 0 and up."""
_NET_BIND_TCP: Final = 1 << 0
_NET_CONNECT_TCP: Final = 1 << 1
_NET_VERSION: Final = 4
_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0
_SCOPE_SIGNAL: Final = 1 << 1
_SCOPE_VERSION: Final = 6

_RULESET_ATTR: Final = Struct("=3Q")  # handled_access_fs, handled_access_net, scoped
_PATH_BENEATH_ATTR: Final = Struct("=Qi")  # allowed_access, parent_fd


def version() -> int:
    """The version of the interface, 1 or more; HostError if Landlock is not available."""
    try:
        return system_call(_NR_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        raise _unavailable(error) from None


def restrict(removable: "Path | None" = None, writable: "Path | None" = None) -> None:
    """From now on, forbid to open, make, change or remove a file by its path; HostError.

    Files in the folder ``removable`` and below may still be removed. In the folder ``writable`` and
    below, files and folders may still be made, read, written and removed. A kernel that can also
    forbids new TCP connections, abstract UNIX sockets and signals to other processes.
    """
    known = version()
    handled = ruleset(known)
    try:
        fd = system_call(_NR_CREATE_RULESET, handled, len(handled), 0)
        try:
            if removable is not None:
                _allow(fd, removable, _FS_REMOVE_FILE)
            if writable is not None:
                more = _FS_TRUNCATE if known >= _FS_TRUNCATE_VERSION else 0
                _allow(fd, writable, _FS_FOR_FILES | more)
            system_call(_NR_RESTRICT_SELF, fd, 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unavailable(error) from None


def ruleset(version: int) -> bytes:
    """A struct landlock_ruleset_attr that forbids everything that ``version`` can forbid.

    An older kernel's structure is shorter. It accepts the rest, because the rest is 0.
    """
    rights = _FS_RIGHTS[max(known for known in _FS_RIGHTS if known <= version)]
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if version >= _NET_VERSION else 0
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= _SCOPE_VERSION else 0
    return _RULESET_ATTR.pack((1 << rights) - 1, net, scoped)


def _allow(ruleset_fd: int, folder: "Path", rights: int) -> None:
    parent = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PATH_BENEATH_ATTR.pack(rights, parent)
        system_call(_NR_ADD_RULE, ruleset_fd, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(parent)


def _unavailable(error: OSError) -> HostError:
    reasons = {
        errno.ENOSYS: "this kernel does not have it",
        errno.EOPNOTSUPP: "it is not among the kernel's security modules (lsm=)",
        errno.EPERM: "a seccomp filter, such as a container's, forbids it",
    }
    reason = reasons.get(error.errno or 0) or error_text(error.errno or 0)
    return HostError(f"Landlock is not available: {reason}")
