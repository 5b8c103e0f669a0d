"""System calls and C functions that Python has no function for, through cffi.

Calls release the GIL. Typed as Any because C is unknown to mypy.
"""

import os

from pykvm.host.libc import _abi
from pykvm.lean.typing_names import Any, Final

ffi: Any = _abi.ffi
libc: Any = ffi.dlopen(None)

_NR_PRCTL: Final = 157
_MOST: Final = 6


def system_call(number: int, *arguments: int | bytes | bytearray) -> int:
    """syscall(2) with at most six integers and addresses of bytes; its result, or OSError."""
    words = [word if isinstance(word, int) else address(word) for word in arguments]
    result: int = libc.syscall(number, *words, *(0,) * (_MOST - len(words)))
    if result < 0:
        error: int = ffi.errno
        raise OSError(error, os.strerror(error))
    return result


def address(data: bytes | bytearray) -> int:
    """Where ``data`` is, for as long as it exists and is not resized."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(data)))


def prctl(option: int, argument: int | bytes) -> None:
    """prctl(2) with one argument, the others being 0; OSError."""
    system_call(_NR_PRCTL, option, argument)


def keep_library(name: str) -> Any:
    """The functions of the shared library ``name``, which stays loaded for good; OSError."""
    return ffi.dlopen(name, os.RTLD_NOW | os.RTLD_NODELETE)
