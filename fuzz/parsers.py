"""Parsers of untrusted input: kernels, fault files, traces, monitor and agent messages."""

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
    """Parse an ELF or bzImage kernel, including its decompression."""
    load_kernel(Ram.flat(GUEST_MEMORY), data)


def faults(data: bytes) -> None:
    """Parse the TOML of ``faults=``."""
    parse_faults(data.decode("utf-8", "replace"))


def trace(data: bytes) -> None:
    """Parse the JSON Lines of a trace, for its summary and its drawing."""
    report(summarize(Reader(BytesIO(data))))
    plot(Reader(BytesIO(data)))


def monitor(data: bytes) -> None:
    """Parse QMP messages in one piece and byte by byte: both give the same answers."""
    whole, pieces = Conversation({}), Conversation({})
    said = whole.receive(data)
    bit_by_bit = [item for byte in data for item in pieces.receive(bytes([byte]))]
    assert said == bit_by_bit, "a message in pieces got a different answer"
    for item in said:
        if isinstance(item, Command):
            item.success({})


def agent(data: bytes) -> None:
    """Parse the messages of the guest's agent."""
    FrameDecoder().feed(data)


PARSERS: tuple[Callable[[bytes], None], ...] = (kernel, faults, trace, monitor, agent)


def parse(data: bytes) -> None:
    """Parse ``data``: its first byte selects the parser of the rest."""
    if data:
        with suppress(UsageError):
            PARSERS[data[0] % len(PARSERS)](data[1:])
