"""The PVH start info, in which a kernel with a PVH entry finds its boot data.

Source: Xen's public/arch-x86/hvm/start_info.h, version 1.
"""

import struct
from collections.abc import Sequence

from pykvm.x86.layout import MapEntry

MAGIC = 0x336EC578
"""``xEn3`` with the top bit of the E set."""
VERSION = 1
_START_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MEMORY = struct.Struct("<QQII")


def build(
    address: int, memory: Sequence[MapEntry], command_line: int, initrd: tuple[int, int] | None
) -> bytes:
    """The start info for guest-physical ``address``, with its lists right behind it.

    ``command_line`` is the guest-physical address of the line, ``initrd`` the
    (start, end) of the only module, if there is one.
    """
    modules = address + _START_INFO.size if initrd else 0
    memory_map = address + _START_INFO.size + (_MODULE.size if initrd else 0)
    info = _START_INFO.pack(
        MAGIC,
        VERSION,
        0,
        1 if initrd else 0,
        modules,
        command_line,
        0,
        memory_map,
        len(memory),
        0,
    )
    if initrd:
        info += _MODULE.pack(initrd[0], initrd[1] - initrd[0], 0, 0)
    return info + b"".join(_MEMORY.pack(entry.start, entry.size, entry.type, 0) for entry in memory)
