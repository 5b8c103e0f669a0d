"""Parsers of what other people wrote: kernels, fault files, traces, monitor and agent messages."""

from collections.abc import Callable
from contextlib import suppress
from io import BytesIO

from pykvm.agent.protocol import FrameDecoder
from pykvm.devices.virtio_blk.layers.fault_file import parse_faults
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.monitor.protocol import Command, Conversation
from pykvm.trace.plot import plot
from pykvm.trace.reader import Reader
from pykvm.trace.summary import report, summarize
from pykvm.x86.loader import load_kernel

GUEST_MEMORY = 4 << 20


def kernel(data: bytes) -> None:
    """ELF and bzImage, decompression included."""
    load_kernel(Ram.flat(GUEST_MEMORY), data)


def faults(data: bytes) -> None:
    """The TOML of ``faults=``."""
    parse_faults(data.decode("utf-8", "replace"))


def trace(data: bytes) -> None:
    """JSON Lines, and both that read them."""
    report(summarize(Reader(BytesIO(data))))
    plot(Reader(BytesIO(data)))


def monitor(data: bytes) -> None:
    """QMP, in one piece and byte by byte: the same answers."""
    whole, pieces = Conversation({}), Conversation({})
    said = whole.receive(data)
    bit_by_bit = [item for byte in data for item in pieces.receive(bytes([byte]))]
    assert said == bit_by_bit, "it matters how a message arrives"
    for item in said:
        if isinstance(item, Command):
            item.success({})


def agent(data: bytes) -> None:
    """What the program in a guest that carries out commands says."""
    FrameDecoder().feed(data)


PARSERS: tuple[Callable[[bytes], None], ...] = (kernel, faults, trace, monitor, agent)


def parse(data: bytes) -> None:
    """The first byte says what the rest is for."""
    if data:
        with suppress(UsageError):
            PARSERS[data[0] % len(PARSERS)](data[1:])
