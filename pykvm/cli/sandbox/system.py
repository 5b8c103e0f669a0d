"""System calls that Python has no function for."""

import ctypes
import os
from typing import Any

PR_SET_NO_NEW_PRIVS = 38


def system_call(number: int, *arguments: Any) -> int:
    """syscall(2) with integers or ctypes pointers; OSError."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    # Plain integers would be passed as int, and the upper half of the register left as it is.
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return checked(syscall(ctypes.c_long(number), *words))


def forbid_new_privileges() -> None:
    """prctl(PR_SET_NO_NEW_PRIVS): no program that is started gains any; OSError."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    checked(prctl(*(ctypes.c_ulong(word) for word in (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))))


def checked(result: int) -> int:
    """``result`` of a C function; OSError if it says that errno tells more."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
