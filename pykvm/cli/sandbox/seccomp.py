"""A seccomp filter, put together by libseccomp: every system call is refused but those of a list.

libseccomp is the reference implementation, which systemd and every container
runtime use, and so it is nearly everywhere. Its few functions are called
through ctypes (docs/decisions/0011-sandbox.md).
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from pykvm.cli.sandbox.rules import ABSENT, Rule
from pykvm.cli.sandbox.system import system_call
from pykvm.errors import HostError

LIBRARY: Final = "libseccomp.so.2"
_NR_SECCOMP: Final = 317
_SECCOMP_GET_ACTION_AVAIL: Final = 2

_SCMP_ACT_KILL_PROCESS: Final = 0x8000_0000
_SCMP_ACT_ERRNO: Final = 0x0005_0000
_SCMP_ACT_ALLOW: Final = 0x7FFF_0000
_SCMP_FLTATR_ACT_BADARCH: Final = 2
_SCMP_FLTATR_CTL_SSB: Final = 7
_SCMP_FLTATR_CTL_OPTIMIZE: Final = 8
_OPTIMIZE_BINARY_TREE: Final = 2
_SCMP_CMP_MASKED_EQ: Final = 7


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def check() -> str:
    """The version of libseccomp; HostError if this host has no filters, or no libseccomp."""
    action = ctypes.c_uint32(_SCMP_ACT_ERRNO)
    try:
        system_call(_NR_SECCOMP, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))
    except OSError as error:
        raise _unavailable(_reason(error.errno or 0)) from None
    library = _library()
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(str(number) for number in library.seccomp_version().contents)


def load(rules: Iterable[Rule]) -> None:
    """Allow ``rules`` and no other system call, in this thread and those it starts; HostError.

    Others fail with EPERM, and system calls of other architectures end the process.
    """
    library = _library()
    context = ctypes.c_void_p(library.seccomp_init(_refuse(errno.EPERM)))
    if not context:
        raise _unavailable("libseccomp has no memory")
    try:
        _set(library, context, _SCMP_FLTATR_ACT_BADARCH, _SCMP_ACT_KILL_PROCESS)
        # Linux before 5.16 takes a filtered process for one that keeps secrets from code in its own
        # address space, and slows down all of its loads. A guest has an address space of its own.
        # Older libraries cannot say so, and search a list instead of a tree: slower, no more.
        with suppress(HostError):
            _set(library, context, _SCMP_FLTATR_CTL_SSB, 1)
            _set(library, context, _SCMP_FLTATR_CTL_OPTIMIZE, _OPTIMIZE_BINARY_TREE)
        for name in ABSENT:
            _add(library, context, _refuse(errno.ENOSYS), name)
        for rule in rules:
            for name in rule.calls:
                _add(library, context, _SCMP_ACT_ALLOW, name, rule)
        _check(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)


def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise _unavailable(f"there is no {LIBRARY}; install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_release.restype = None
    return library


def _set(library: Any, context: ctypes.c_void_p, attribute: int, value: int) -> None:
    _check(library.seccomp_attr_set(context, attribute, ctypes.c_uint32(value)))


def _add(
    library: Any, context: ctypes.c_void_p, action: int, name: str, rule: Rule | None = None
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        raise _unavailable(f"{LIBRARY} is too old to know {name}")
    only = rule.only if rule else None
    if only is None:
        _check(library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, 0, None))
        return
    for value in only.values:
        comparison = _Comparison(only.argument, _SCMP_CMP_MASKED_EQ, only.mask, value)
        allow = ctypes.c_uint32(action)
        _check(library.seccomp_rule_add_array(context, allow, number, 1, ctypes.byref(comparison)))


def _refuse(error: int) -> int:
    return _SCMP_ACT_ERRNO | error


def _check(result: int) -> None:
    if result < 0:
        raise _unavailable(_reason(-result))


def _reason(error: int) -> str:
    if error in (errno.ENOSYS, errno.EINVAL):
        return "this kernel has no filters"
    if error == errno.ECANCELED:
        # What libseccomp makes of every error of the kernel's.
        return "the kernel refuses the filter"
    return os.strerror(error).lower()


def _unavailable(reason: str) -> HostError:
    return HostError(f"seccomp is not available: {reason}")
