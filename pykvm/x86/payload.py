"""Decompression of the kernel in a bzImage, on the host.

The guest never decompresses a kernel. On a host that emulates guest kernel code
that would take hours, and on other hosts it would waste time.

The x86 build appends four bytes with the unpacked size to every payload except gzip.
Each decompressor here ignores bytes behind the compressed stream. A library is
imported only when a payload needs it, because most runs boot an uncompressed vmlinux.
"""

from collections.abc import Callable
from typing import Protocol

from pykvm.errors import UsageError

MAX_UNPACKED = 1 << 30
"""In bytes. No kernel is larger, so a payload that unpacks to more is refused."""

_LZMA_MEMORY = 512 << 20
"""xz and lzma dictionaries: kernels use up to 128 MiB."""
_ZSTD_WINDOW = 1 << 27
"""The largest window that ``zstd --ultra -22`` uses."""
_ZSTD_PIECE = 4096
_LZ4_LEGACY_MAGIC = 0x184C2102
_LZ4_LEGACY_BLOCK = 8 << 20
"""Unpacked size of every block but the last (lz4_Frame_format.md, legacy frame)."""
_LZ4_LEGACY_PACKED = _LZ4_LEGACY_BLOCK + _LZ4_LEGACY_BLOCK // 255 + 16


class PayloadError(ValueError):
    """Compressed data that cannot be unpacked; the text says why."""


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def compression(data: bytes) -> str | None:
    """The name of the compression that ``data`` begins with, or None.

    One of ``gzip``, ``bzip2``, ``lzma``, ``xz``, ``lzo``, ``lz4`` (legacy frame),
    ``lz4 frame`` and ``zstd``.
    """
    magics = (
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x5d\x00\x00", "lzma"),
        (b"\x89LZO", "lzo"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x04\x22\x4d\x18", "lz4 frame"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    )
    return next((name for magic, name in magics if data.startswith(magic)), None)


def unpack(data: bytes, what: str, limit: int = MAX_UNPACKED) -> tuple[bytes, str]:
    """The unpacked payload and its compression's name (``none`` for a plain ELF).

    UsageError, with ``what`` as its subject, if the format is unknown or not
    supported, the data are damaged, or they unpack to more than ``limit`` bytes.
    """
    if data.startswith(b"\x7fELF"):
        return data, "none"
    name = compression(data)
    if name == "lzo":
        raise UsageError(
            f"{what} is compressed with LZO, which is not supported",
            "build it with a different compression, or give its vmlinux to --kernel",
        )
    if name is None:
        raise UsageError(
            f"{what} has an unknown compression (it begins with {data[:6].hex(' ')})",
            "give its vmlinux to --kernel",
        )
    try:
        unpacked = _decompressor(name)(data, limit)
    except PayloadError as error:
        raise UsageError(
            f"{what} cannot be unpacked ({name}): {error}", "it is damaged; build or copy it again"
        ) from None
    if len(unpacked) > limit:
        raise UsageError(f"{what} unpacks to more than {limit >> 20} MiB", "no kernel is so large")
    return unpacked, name


def peek(data: bytes, length: int = 512) -> bytes:
    """The first unpacked bytes of compressed ``data``, which may be cut off; b"" if none."""
    name = compression(data)
    if name is None or name == "lzo":
        return b""
    try:
        return _decompressor(name, whole=False)(data, length)[:length]
    except PayloadError:
        return b""


def _decompressor(name: str, whole: bool = True) -> Callable[[bytes, int], bytes]:
    """A function of (data, limit) that returns at most limit + 1 bytes, or a few more.

    With ``whole``, data that end before their stream are an error.
    """
    if name == "zstd":
        return lambda data, limit: _zstd(data, limit, whole)
    if name == "lz4":
        return _lz4_legacy

    def run(data: bytes, limit: int) -> bytes:
        stream, failures = _stream(name)
        try:
            unpacked = stream.decompress(data, limit + 1)
        except failures as error:
            raise PayloadError(str(error)) from None
        if whole and not stream.eof and len(unpacked) <= limit:
            raise PayloadError("the data end too early")
        return unpacked

    return run


def _stream(name: str) -> tuple[_Stream, tuple[type[Exception], ...]]:
    """A new decompressor of the common kind, and the errors it raises."""
    if name == "gzip":
        import zlib

        return zlib.decompressobj(wbits=31), (zlib.error,)
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor(), (OSError, ValueError)
    if name == "lz4 frame":
        import lz4.frame

        return lz4.frame.LZ4FrameDecompressor(), (RuntimeError, ValueError)
    import lzma

    kind = lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE
    return lzma.LZMADecompressor(kind, memlimit=_LZMA_MEMORY), (lzma.LZMAError, MemoryError)


def _zstd(data: bytes, limit: int, whole: bool) -> bytes:
    """Unpack a zstd frame. Those of kernels do not tell their unpacked size.

    The library has no limit for its output, so it gets small pieces: four bytes
    unpack to 128 KiB at most, so one piece unpacks to 128 MiB at most.
    """
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    pieces, total = [], 0
    try:
        for start in range(0, len(data), _ZSTD_PIECE):
            pieces.append(stream.decompress(data[start : start + _ZSTD_PIECE]))
            total += len(pieces[-1])
            if stream.eof or total > limit:
                break
    except (zstandard.ZstdError, MemoryError) as error:
        raise PayloadError(str(error)) from None
    if whole and not stream.eof and total <= limit:
        raise PayloadError("the data end too early")
    return b"".join(pieces)


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    """Unpack an lz4 legacy frame: a magic number, then blocks with a size in front of each.

    The format has no end mark, so the last four bytes count as the size that the
    kernel's build appends.
    """
    import lz4.block

    pieces = []
    total, position = 0, 4
    while len(data) - position > 4 and total <= limit:
        size = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if size == _LZ4_LEGACY_MAGIC:
            continue
        block = data[position : position + size]
        if not 0 < size <= _LZ4_LEGACY_PACKED or len(block) != size:
            raise PayloadError(f"a block of {size} bytes at offset {position}")
        position += size
        try:
            piece = lz4.block.decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
            raise PayloadError(str(error)) from None
        pieces.append(piece)
        total += len(piece)
    return b"".join(pieces)
