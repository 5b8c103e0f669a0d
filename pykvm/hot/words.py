"""Names for machine words and for memory made of them. mypy sees the types behind them.

``make speed`` compiles the modules that use them (speed/README.md). In the interpreted
form they only mean ``int`` and ``memoryview``.
"""

from array import array
from collections.abc import Iterable
from typing import TypeAlias

U64: TypeAlias = int
"""0 to 2^64 - 1. An ``int`` is a signed 64-bit word."""
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
"""Masks the low half of a 64-bit word. Import it: as a literal, it would be too large for C."""

NO_BYTES: Bytes = memoryview(bytearray())


def zeros(count: int) -> Longs:
    """``count`` words, all 0."""
    return memoryview(array("q", bytes(8 * count)))


def longs(values: Iterable[int]) -> Longs:
    """``values`` as :data:`Longs`."""
    return memoryview(array("q", values))
