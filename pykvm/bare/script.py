"""Scripts for the bare guest: each method adds an operation and returns its :class:`Step`.

guest/bare/script.h is the reference for the operations.
"""

from collections.abc import Sequence
from typing import TypeVar

from pykvm.bare import layout, results
from pykvm.bare.arena import Arena, Chain, Ring
from pykvm.bare.layout import NotifyMode, OpCode, Region, WaitMode
from pykvm.bare.results import (
    Decoder,
    InitialiseResult,
    LoadResult,
    OpenResult,
    PciFunction,
    PingPongResult,
    PostResult,
    QueueResult,
    Step,
    WaitResult,
    fields_of,
)
from pykvm.bare.tsc import host_tsc_khz
from pykvm.pc.serial import COM1
from pykvm.pci.common_cfg import VIRTIO_MSI_NO_VECTOR
from pykvm.virtio.constants import VIRTIO_ID_BLOCK

T = TypeVar("T")
TIMEOUT_US = 60_000_000
"""The guest gives up after this time, which is long enough for a slow or busy host."""


class Script:
    """Operations for one vCPU. :meth:`encode` returns the initrd, from the script of vCPU 0."""

    def __init__(self, cpu: int = 0, arena: Arena | None = None) -> None:
        """``arena``: the arena of a different vCPU's script, to share it."""
        self.cpu = cpu
        self.arena = arena or Arena()
        self._ops: list[bytes] = []

    def operations(self) -> bytes:
        """The operations without a header."""
        return b"".join(self._ops)

    def encode(self, tsc_khz: int | None = None) -> bytes:
        """The whole script. ``tsc_khz`` is the guest's TSC frequency (default: the host's)."""
        body = self.operations()
        size = layout.SCRIPT_HEADER.size + len(body)
        khz = host_tsc_khz() if tsc_khz is None else tsc_khz
        return layout.SCRIPT_HEADER.pack(layout.SCRIPT_MAGIC, size, khz) + body

    def _add(self, code: OpCode, body: bytes, decode: Decoder[T], flags: int = 0) -> Step[T]:
        padded = body + bytes(-len(body) % 8)
        size = layout.OP_HEADER.size + len(padded)
        self._ops.append(layout.OP_HEADER.pack(code, flags, size) + padded)
        return Step(self.cpu, len(self._ops) - 1, decode)

    # Memory, ports and text

    def exit(self, status: int) -> Step[None]:
        """Leave through the exit port with ``status``, at once."""
        return self._add(OpCode.EXIT, layout.OP_EXIT.pack(status), results.nothing)

    def print(self, text: bytes, port: int = COM1, string: bool = False) -> Step[None]:
        """Send ``text`` to the serial port at ``port``. ``string``: with one REP OUTSB."""
        body = layout.OP_PRINT.pack(port, len(text)) + text
        return self._add(OpCode.PRINT, body, results.nothing, flags=int(string))

    def write_memory(self, address: int, data: bytes) -> Step[None]:
        """Store ``data`` at ``address``."""
        body = layout.OP_MEMORY.pack(address, len(data)) + data
        return self._add(OpCode.WRITE_MEMORY, body, results.nothing)

    def read_memory(self, address: int, length: int) -> Step[bytes]:
        """Copy ``length`` bytes at ``address`` into the results."""
        return self._add(OpCode.READ_MEMORY, layout.OP_MEMORY.pack(address, length), results.raw)

    def fill_memory(self, address: int, length: int, seed: int, step: int = 1) -> Step[None]:
        """Fill memory with 64-bit words seed, seed + step, … (see :func:`filling`)."""
        body = layout.OP_FILL.pack(address, seed, step, length)
        return self._add(OpCode.FILL_MEMORY, body, results.nothing)

    def hash_memory(self, address: int, length: int) -> Step[int]:
        """The CRC-32 (:func:`zlib.crc32`) of ``length`` bytes at ``address``."""
        return self._add(OpCode.HASH_MEMORY, layout.OP_MEMORY.pack(address, length), results.value)

    def sleep(self, microseconds: int) -> Step[None]:
        """Spin for this time."""
        return self._add(OpCode.SLEEP, layout.OP_SLEEP.pack(microseconds), results.nothing)

    def counters(self) -> Step[dict[int, int]]:
        """The number of interrupts so far by CPU vector."""
        return self._add(OpCode.COUNTERS, b"", results.counters)

    # Raw accesses: a write if ``value`` is given; ``count`` repeats it, to measure its cost

    def _access(
        self, code: OpCode, address: int, width: int, value: int | None, count: int
    ) -> Step[int]:
        body = layout.OP_ACCESS.pack(address, value or 0, width, value is not None, count)
        return self._add(code, body, results.value)

    def port(self, port: int, width: int, value: int | None = None, count: int = 1) -> Step[int]:
        """IN or OUT of ``width`` bytes."""
        return self._access(OpCode.PORT, port, width, value, count)

    def mmio(self, address: int, width: int, value: int | None = None, count: int = 1) -> Step[int]:
        """A load or store of ``width`` bytes at guest-physical ``address``."""
        return self._access(OpCode.MMIO, address, width, value, count)

    def pci_config(
        self, bdf: int, offset: int, width: int, value: int | None = None, count: int = 1
    ) -> Step[int]:
        """An access to configuration space by mechanism 1."""
        return self._access(OpCode.PCI_CONFIG, bdf << 16 | offset, width, value, count)

    def pci_scan(self) -> Step[list[PciFunction]]:
        """Function 0 of each device on bus 0."""
        return self._add(OpCode.PCI_SCAN, b"", results.pci_functions)

    # A virtio device; ``slot`` (0 to 3) is the guest's number for it

    def open(
        self, slot: int = 0, device_id: int = VIRTIO_ID_BLOCK, nth: int = 0
    ) -> Step[OpenResult]:
        """Find the ``nth`` modern virtio device of this type on bus 0."""
        body = layout.OP_OPEN.pack(slot, device_id, nth)
        return self._add(OpCode.OPEN, body, OpenResult.decode)

    def register(
        self, region: Region, offset: int, width: int, value: int | None = None, slot: int = 0
    ) -> Step[int]:
        """One access to a structure of the device; a write if ``value`` is given."""
        body = layout.OP_REGISTER.pack(slot, offset, value or 0, region, width, value is not None)
        return self._add(OpCode.REGISTER, body, results.value)

    def initialise(
        self, features: int, slot: int = 0, force: bool = False
    ) -> Step[InitialiseResult]:
        """Reset and negotiate up to FEATURES_OK. ``force``: also accept features not offered."""
        body = layout.OP_INITIALISE.pack(slot, features)
        return self._add(
            OpCode.INITIALISE,
            body,
            fields_of(layout.INITIALISE_RESULT, InitialiseResult),
            flags=int(force),
        )

    def queue(
        self,
        ring: Ring,
        queue: int = 0,
        size: int = 0,
        vector: int = VIRTIO_MSI_NO_VECTOR,
        slot: int = 0,
    ) -> Step[QueueResult]:
        """Set up and enable a virtqueue; ``vector`` is an index into the MSI-X table."""
        body = layout.OP_QUEUE.pack(
            slot, queue, size, ring.descriptors, ring.available, ring.used, vector
        )
        return self._add(OpCode.QUEUE, body, fields_of(layout.QUEUE_RESULT, QueueResult))

    def ready(self, slot: int = 0) -> Step[int]:
        """Set DRIVER_OK; the result is the device status read back."""
        return self._add(OpCode.READY, layout.OP_SLOT.pack(slot), results.value)

    def reset(self, slot: int = 0) -> Step[int]:
        """Write 0 to the device status and wait until it reads 0."""
        return self._add(OpCode.RESET, layout.OP_SLOT.pack(slot), results.value)

    def msix(
        self, count: int, first: int = layout.VECTOR_IRQ_FIRST, apic_id: int = 0, slot: int = 0
    ) -> Step[int]:
        """Enable MSI-X; entry i sends CPU vector ``first + i``. The result is the table's size."""
        return self._add(
            OpCode.MSIX, layout.OP_MSIX.pack(slot, count, first, apic_id), results.value
        )

    def intx(self, gsi: int = 0, slot: int = 0) -> Step[None]:
        """Receive the device's INTx through I/O APIC input ``gsi``. Only one device at a time.

        0 stands for the input that the function's Interrupt Line register names.
        """
        return self._add(OpCode.INTX, layout.OP_INTX.pack(slot, gsi), results.nothing)

    def post(
        self,
        chains: Sequence[Chain],
        notify: NotifyMode = NotifyMode.IF_WANTED,
        wait: WaitMode = WaitMode.POLL,
        queue: int = 0,
        slot: int = 0,
    ) -> Step[PostResult]:
        """Make ``chains`` available at once, and notify the device as ``notify`` says.

        ``wait`` is how the script will wait for them. Unless it polls, the driver asks for an
        interrupt at the first used element.
        """
        body = layout.OP_POST.pack(slot, queue, notify, wait, len(chains))
        body += b"".join(chain.encode() for chain in chains)
        return self._add(OpCode.POST, body, fields_of(layout.POST_RESULT, PostResult))

    def notify(self, value: int = 0, queue: int = 0, slot: int = 0) -> Step[None]:
        """Write ``value`` to the notification address of ``queue``."""
        return self._add(OpCode.NOTIFY, layout.OP_NOTIFY.pack(slot, queue, value), results.nothing)

    def wait(
        self,
        count: int,
        mode: WaitMode = WaitMode.POLL,
        queue: int = 0,
        slot: int = 0,
        timeout_us: int = TIMEOUT_US,
        needs_interrupt: bool = False,
    ) -> Step[WaitResult]:
        """Take ``count`` used elements. A time-out gives TIMEOUT and the elements that came.

        ``needs_interrupt``: the operation also times out if no interrupt arrives after the post.
        With IDLE the vCPU halts until an interrupt.
        """
        body = layout.OP_WAIT.pack(slot, queue, mode, count, timeout_us)
        return self._add(OpCode.WAIT, body, WaitResult.decode, flags=int(needs_interrupt))

    def relocate(self, bar: int, address: int, slot: int = 0) -> Step[int]:
        """Move a BAR of the device and use it there from now on; the result is the BAR."""
        body = layout.OP_RELOCATE.pack(slot, bar, address)
        return self._add(OpCode.RELOCATE, body, results.value)

    def load(
        self,
        type_: int,
        *,
        total: int,
        sectors: int,
        span: int,
        depth: int = 1,
        first: int = 0,
        stride: int = 0,
        random: int = 0,
        indirect: bool = False,
        wait: WaitMode = WaitMode.POLL,
        notify: NotifyMode = NotifyMode.IF_WANTED,
        queue: int = 0,
        slot: int = 0,
        timeout_us: int = TIMEOUT_US,
        duration_us: int = 0,
        memory: int = 0,
        queues: int = 1,
        segments: int = 1,
        exits: bool = False,
    ) -> Step[LoadResult]:
        """A closed loop of ``total`` block requests of ``type_``, with ``depth`` in flight.

        With ``duration_us`` the loop ends after that time at the latest. The data of each request
        has ``segments`` descriptors. ``exits``: while it waits, the vCPU reads a register of the
        device again and again, and measures the time of each read.

        ``sectors``, ``first``, ``stride`` and ``span`` are in sectors. Request i starts at
        ``first + i * stride % span`` (``stride`` 0: sequential). With a seed ``random`` it starts
        at a random multiple of ``stride`` below ``span``. With several ``queues`` each has a loop:
        the first on ``queue`` and ``first``, the second on the next queue and the next span, and
        so on. ``memory`` is the page-aligned address of :func:`load_memory` bytes of the arena;
        by default the operation allocates them.
        """
        assert wait is WaitMode.POLL or (queues == 1 and not exits), "see script.h"
        needed = load_memory(depth * queues, sectors, segments)
        buffers = memory or self.arena.allocate(needed, 4096)
        headers = buffers + 512 * sectors * depth * queues
        table = headers + 32 * depth * queues if indirect else 0
        body = layout.OP_LOAD.pack(
            *(slot, queue, wait, notify, type_, depth, total, sectors),
            *(first, stride or sectors, span, random, headers, buffers, table, timeout_us),
            *(duration_us, queues, segments, exits),
        )
        return self._add(OpCode.LOAD, body, LoadResult.decode)

    # Other vCPUs

    def spawn(self, other: "Script", timeout_us: int = TIMEOUT_US) -> Step[None]:
        """Start vCPU ``other.cpu`` (1 to 3) on the script ``other``, which must be complete."""
        body = other.operations()
        head = layout.OP_SPAWN.pack(other.cpu, len(body), timeout_us)
        return self._add(OpCode.SPAWN, head + body, results.nothing)

    def join(self, cpu: int, timeout_us: int = TIMEOUT_US) -> Step[int]:
        """Wait until a spawned vCPU ends its script; the result is its :class:`RunState`."""
        return self._add(OpCode.JOIN, layout.OP_JOIN.pack(cpu, timeout_us), results.value)

    def ping_pong(
        self, address: int, turn: int, rounds: int, timeout_us: int = TIMEOUT_US
    ) -> Step[PingPongResult]:
        """Pass the word at ``address`` back and forth with a vCPU that has the other ``turn``."""
        body = layout.OP_PING_PONG.pack(address, turn, rounds, timeout_us)
        return self._add(OpCode.PING_PONG, body, fields_of(layout.PING_PONG_RESULT, PingPongResult))


def load_memory(requests: int, sectors: int, segments: int = 1) -> int:
    """The bytes of the arena that :meth:`Script.load` needs for ``requests`` in flight.

    They hold the data, headers, statuses and indirect tables.
    """
    return (512 * sectors + 32 + 16 * (segments + 2)) * requests


def filling(length: int, seed: int, step: int = 1) -> bytes:
    """The bytes that :meth:`Script.fill_memory` stores."""
    words = ((seed + i * step) & (2**64 - 1) for i in range(length // 8))
    return b"".join(word.to_bytes(8, "little") for word in words)
