"""A shortcut for system calls: a few instructions in front of the guest's page-fault handler.

Where SYSCALL ends in a page fault (see ``syscall_delivery.py``), delivering it from
outside makes an empty system call take 135 us. Five instructions in the guest
bring that to 46 us (and getppid of Linux from 198 to 122, a page fault from
750 to 655). They go into padding behind code of the guest's kernel, and
IDT[14] is pointed at them. No instruction of the guest is changed. On
ordinary hosts they do no harm, because no page fault there has LSTAR as its
stacked rip.

Pure: works on a :class:`GuestView`.
"""

from struct import pack

from pykvm.kvm.guest_fault import GuestFault
from pykvm.kvm.paging import GuestView
from pykvm.memory.ram import GuestAddressError

_PAGE = 0x1000
_PAGES_SEARCHED = 512
_ROOM = 64
# The linker fills gaps with INT3. A gap counts only behind other bytes of its page: pages that
# are padding as a whole are given back by Linux once it has booted.
_INT3 = b"\xcc"
_PADDING = _INT3 * _ROOM

_CMP = b"\x48\x81\x7c\x24\x08"  # cmpq $imm32, 8(%rsp): the stacked rip
_JNE = b"\x0f\x85"
_OR_RF = b"\x49\x81\xcb\x00\x00\x01\x00"  # or $RF, %r11
_CLD = b"\xfc"
_LOAD_RSP = b"\x48\x8b\x64\x24\x20"  # mov 32(%rsp), %rsp: the stacked rsp
_JMP = b"\xe9"

SIGNATURE_SIZE = len(_CMP) + 4


def build(at: int, handler: int, lstar: int, *, return_by_iret: bool = False) -> bytes:
    """The code at ``at`` that takes page faults to ``handler`` and system calls to ``lstar``.

    ``return_by_iret`` sets RF in r11, which makes Linux return by IRET. b"" if
    the addresses are no kernel's, which are all in the uppermost 2 GiB.
    """
    if {at >> 31, handler >> 31, lstar >> 31} != {0x1_FFFF_FFFF}:
        return b""
    code = _CMP + pack("<I", lstar & 0xFFFF_FFFF) + _JNE
    code += pack("<i", handler - (at + len(code) + 4))
    code += (_OR_RF if return_by_iret else b"") + _CLD + _LOAD_RSP + _JMP
    return code + pack("<i", lstar - (at + len(code) + 4))


def is_trampoline(code: bytes, lstar: int) -> bool:
    """True if ``code``, the start of a page-fault handler, is a trampoline to ``lstar``."""
    return code[:SIGNATURE_SIZE] == _CMP + pack("<I", lstar & 0xFFFF_FFFF)


def find_room(view: GuestView, near: int) -> int:
    """Guest-virtual address of 48 unused bytes in executable pages from ``near`` on; 0: none."""
    page = near & ~(_PAGE - 1)
    for _ in range(_PAGES_SEARCHED):
        try:
            code = view.fetch(page, _PAGE)
        except (GuestFault, GuestAddressError):
            return 0
        # Padding at the start of the page may belong to the code before it.
        start = code.find(_PADDING, len(code) - len(code.lstrip(_INT3)))
        if start >= 0:
            return page + ((start + 15) & ~15)
        page += _PAGE
    return 0
