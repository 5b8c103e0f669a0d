"""Names for what fits into machine words, for mypy the same as the types behind them.

``make speed`` compiles the modules that use them (speed/); interpreted, they
mean nothing more than ``int`` and ``memoryview``.
"""

from array import array
from collections.abc import Iterable

from pykvm.lean.typing_names import TypeAlias

U64: TypeAlias = int
"""0 to 2^64 - 1, where ``int`` is a signed 64-bit word."""
Bytes: TypeAlias = memoryview
"""Of unsigned bytes."""
Words16: TypeAlias = memoryview
"""Of unsigned 16-bit words."""
Words32: TypeAlias = memoryview
"""Of unsigned 32-bit words."""
Words64: TypeAlias = memoryview
"""Of unsigned 64-bit words."""
Longs: TypeAlias = memoryview
"""Of signed 64-bit words."""

LOW_32 = 0xFFFFFFFF
"""Masks the low half of a 64-bit word. Imported, it is one; written out, it is too large for C."""

NO_BYTES: Bytes = memoryview(bytearray())


def zeros(count: int) -> Longs:
    """``count`` zeros."""
    return memoryview(array("q", bytes(8 * count)))


def longs(values: Iterable[int]) -> Longs:
    """``values`` as :data:`Longs`."""
    return memoryview(array("q", values))
