"""A seccomp filter that refuses every system call outside a list. libseccomp builds it.

libseccomp is the reference implementation. systemd and the container runtimes use it, so nearly
every host has it. pykvm calls its few functions through cffi (docs/decisions/0011-sandbox.md).
"""

import errno
from collections.abc import Iterable
from contextlib import suppress

from pykvm.errors import HostError, error_text
from pykvm.host.libc import ffi, keep_library, system_call
from pykvm.lean.typing_names import Any, Final
from pykvm.sandbox.rules import ABSENT, Rule

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


def check() -> str:
    """The version of libseccomp; HostError if filters or libseccomp are missing."""
    action = _SCMP_ACT_ERRNO.to_bytes(4, "little")
    try:
        system_call(_NR_SECCOMP, _SECCOMP_GET_ACTION_AVAIL, 0, action)
    except OSError as error:
        raise _unavailable(_reason(error.errno or 0)) from None
    version = _library().seccomp_version()
    return f"{version.major}.{version.minor}.{version.micro}"


def load(rules: Iterable[Rule]) -> None:
    """Allow only ``rules`` in this thread and in the threads that it starts; HostError.

    Any other system call fails with EPERM. A system call of a different architecture ends the
    process.
    """
    library = _library()
    context = library.seccomp_init(_refuse(errno.EPERM))
    if not context:
        raise _unavailable("libseccomp has no memory")
    try:
        _set(library, context, _SCMP_FLTATR_ACT_BADARCH, _SCMP_ACT_KILL_PROCESS)
        # Linux before 5.16 protects the loads of a filtered process against code in the process's
        # own address space, which slows them down. A guest has its own address space, so that is
        # turned off. An older library cannot do this, and searches a list instead of a tree. It is
        # only slower.
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
        return keep_library(LIBRARY)
    except OSError:
        raise _unavailable(f"there is no {LIBRARY}; install libseccomp2") from None


def _set(library: Any, context: Any, attribute: int, value: int) -> None:
    _check(library.seccomp_attr_set(context, attribute, value))


def _add(library: Any, context: Any, action: int, name: str, rule: Rule | None = None) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        raise _unavailable(f"{LIBRARY} is too old to know {name}")
    only = rule.only if rule else None
    if only is None:
        _check(library.seccomp_rule_add_array(context, action, number, 0, ffi.NULL))
        return
    for value in only.values:
        fields = (only.argument, _SCMP_CMP_MASKED_EQ, only.mask, value)
        comparison = ffi.new("struct scmp_arg_cmp *", fields)
        _check(library.seccomp_rule_add_array(context, action, number, 1, comparison))


def _refuse(error: int) -> int:
    return _SCMP_ACT_ERRNO | error


def _check(result: int) -> None:
    if result < 0:
        raise _unavailable(_reason(-result))


def _reason(error: int) -> str:
    if error in (errno.ENOSYS, errno.EINVAL):
        return "this kernel has no filters"
    if error == errno.ECANCELED:
        # libseccomp returns this for every error of the kernel's.
        return "the kernel refuses the filter"
    return error_text(error)


def _unavailable(reason: str) -> HostError:
    return HostError(f"seccomp is not available: {reason}")
