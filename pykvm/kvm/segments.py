"""Flat segments for a vCPU, as descriptors with base 0 and the largest limit load them."""

from pykvm.lean.typing_names import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pykvm.kvm.structs import Segment

_CODE: Final = 11
"""Type of a code segment that can be read, and of a busy TSS (SDM volume 3, tables 3-1, 3-2)."""
_DATA: Final = 3
"""Type of a data segment that can be written."""


def load_code(segment: "Segment", selector: int, dpl: int = 0) -> None:
    """64-bit code at privilege level ``dpl``."""
    _load_flat(segment, selector, _CODE, dpl)
    segment.l, segment.db = 1, 0


def load_data(segment: "Segment", selector: int, dpl: int = 0) -> None:
    """Data, or a stack, at privilege level ``dpl``."""
    _load_flat(segment, selector, _DATA, dpl)
    segment.l, segment.db = 0, 1


def load_tss(segment: "Segment", selector: int, base: int) -> None:
    """A busy 64-bit TSS at ``base``; VM entry on Intel insists on one."""
    _load_flat(segment, selector, _CODE, 0)
    segment.base, segment.limit = base, 0x67
    segment.s = segment.g = segment.l = segment.db = 0


def _load_flat(segment: "Segment", selector: int, kind: int, dpl: int) -> None:
    segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, selector & 0xFFFF
    segment.type, segment.s, segment.dpl, segment.present = kind, 1, dpl, 1
    segment.g, segment.unusable = 1, 0
