"""System calls and C functions that Python does not offer, through cffi.

Calls release the GIL. The types are Any because mypy does not know C.
"""

import os

from pykvm.host.libc import _abi
from pykvm.lean.typing_names import Any, Final

ffi: Any = _abi.ffi
libc: Any = ffi.dlopen(None)

_NR_PRCTL: Final = 157
_MOST: Final = 6


def system_call(number: int, *arguments: int | bytes | bytearray) -> int:
    """Call syscall(2) with up to six integers or addresses of bytes; its result, or OSError."""
    words = [word if isinstance(word, int) else address(word) for word in arguments]
    result: int = libc.syscall(number, *words, *(0,) * (_MOST - len(words)))
    if result < 0:
        error: int = ffi.errno
        raise OSError(error, os.strerror(error))
    return result


def address(data: bytes | bytearray) -> int:
    """The address of ``data``, valid as long as ``data`` exists and is not resized."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(data)))


def prctl(option: int, argument: int | bytes) -> None:
    """Call prctl(2) with one argument; the others are 0. OSError."""
    system_call(_NR_PRCTL, option, argument)


def keep_library(name: str) -> Any:
    """The functions of the shared library ``name``, which is never unloaded; OSError."""
    return ffi.dlopen(name, os.RTLD_NOW | os.RTLD_NODELETE)
