"""A virtio-blk driver for scripts: requests in, statuses and data out::

    script = Script()
    disk = BlockDriver(script)
    disk.start(features=VIRTIO_F_VERSION_1)
    batch = disk.submit([BlockRequest.read(0, 512), BlockRequest.flush()])
    … run the script …
    first, second = batch.outcomes(results)

A batch is posted at once, so the device finds all of it in one drain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from struct import pack

from pykvm.bare.arena import Chain, Ring, Segment
from pykvm.bare.layout import NotifyMode, WaitMode
from pykvm.bare.results import (
    InitialiseResult,
    OpenResult,
    PostResult,
    QueueResult,
    Results,
    Step,
    WaitResult,
)
from pykvm.bare.script import TIMEOUT_US, Script
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.pci.common_cfg import VIRTIO_MSI_NO_VECTOR
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
)

DEFAULT_FEATURES = (
    VIRTIO_F_VERSION_1
    | VIRTIO_F_INDIRECT_DESC
    | VIRTIO_F_EVENT_IDX
    | VIRTIO_BLK_F_FLUSH
    | VIRTIO_BLK_F_CONFIG_WCE
    | VIRTIO_BLK_F_MQ
)
"""For a driver without the flush feature, a device makes every write durable (virtio 1.2
§5.2.6.2). With CONFIG_WCE the disk keeps the cache mode of its options."""

UNTOUCHED = 0xEE
"""The driver fills the device-writable buffers with this byte before each request. A status with
this value was never written."""


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """A request as a driver lays it out (virtio 1.2 §5.2.6).

    The device reads the header and ``data``, and writes ``length`` bytes and the status.
    ``readable`` and ``writable`` cut these two runs of bytes into descriptors of the given
    lengths; one more descriptor takes the rest. By default the header, the data and the status
    have one descriptor each, and empty data has none. ``header`` replaces the 16 bytes made of
    ``type`` and ``sector``. ``hashed``: the outcome has only the CRC-32 of the read bytes.
    """

    type: int
    sector: int = 0
    data: bytes = b""
    length: int = 0
    readable: Sequence[int] | None = None
    writable: Sequence[int] | None = None
    header: bytes | None = None
    indirect: bool = False
    hashed: bool = False

    @classmethod
    def read(cls, sector: int, length: int, *, hashed: bool = False) -> "BlockRequest":
        """IN: ``length`` bytes from ``sector``."""
        return cls(VIRTIO_BLK_T_IN, sector, length=length, hashed=hashed)

    @classmethod
    def write(cls, sector: int, data: bytes) -> "BlockRequest":
        """OUT: ``data`` to ``sector``."""
        return cls(VIRTIO_BLK_T_OUT, sector, data=data)

    @classmethod
    def flush(cls) -> "BlockRequest":
        """FLUSH."""
        return cls(VIRTIO_BLK_T_FLUSH)

    @classmethod
    def get_id(cls, length: int = 20) -> "BlockRequest":
        """GET_ID into a buffer of ``length`` bytes."""
        return cls(VIRTIO_BLK_T_GET_ID, length=length)

    def laid_out(
        self,
        readable: Sequence[int] | None = None,
        writable: Sequence[int] | None = None,
        indirect: bool = False,
    ) -> "BlockRequest":
        """The same request in different descriptors."""
        return replace(self, readable=readable, writable=writable, indirect=indirect)

    def header_bytes(self) -> bytes:
        """The header as the device reads it."""
        if self.header is not None:
            return self.header
        return pack("<IIQ", self.type, 0, self.sector & (2**64 - 1))


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """The outcome of a request.

    ``status`` is the byte in memory, UNTOUCHED if never written. ``length`` is the used element's
    length, and ``order`` its place among the batch's completions; both are None if the request
    never completed. ``data`` has the bytes that the device wrote before the status (empty if
    hashed), and ``crc`` their CRC-32 (0 unless hashed). ``ticks`` is the time from the post until
    the driver saw the completion.
    """

    status: int
    length: int | None
    order: int | None
    data: bytes
    crc: int
    ticks: int


@dataclass(frozen=True, slots=True)
class _Placed:
    tag: int
    chain: Chain
    status: Step[bytes]
    data: Step[bytes] | None
    crc: Step[int] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A posted batch. ``wait`` is None if the script does not wait for it."""

    posted: Step[PostResult]
    wait: Step[WaitResult] | None
    requests: tuple[_Placed, ...]

    def outcomes(self, results: Results) -> list[BlockOutcome]:
        """The outcome of each request, in the order of the batch, even after a time-out."""
        begin = results.record(self.posted).begin
        done = results.whatever(self.wait).completions if self.wait else ()
        by_tag = {completion.tag: (i, completion) for i, completion in enumerate(done)}
        found = []
        for placed in self.requests:
            order, completion = by_tag.get(placed.tag, (None, None))
            found.append(
                BlockOutcome(
                    status=results[placed.status][0],
                    length=completion.length if completion else None,
                    order=order,
                    data=results[placed.data] if placed.data else b"",
                    crc=results[placed.crc] if placed.crc else 0,
                    ticks=completion.tsc - begin if completion else 0,
                )
            )
        return found


@dataclass
class BlockDriver:
    """Drives the ``nth`` virtio-blk disk on bus 0 from a script, as device ``slot``."""

    script: Script
    nth: int = 0
    slot: int = 0
    opened: Step[OpenResult] = field(init=False)
    initialised: Step[InitialiseResult] = field(init=False)
    queues: list[Step[QueueResult]] = field(init=False, default_factory=list)
    rings: list[Ring] = field(init=False, default_factory=list)
    _tag: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.opened = self.script.open(self.slot, nth=self.nth)

    def start(
        self,
        features: int = DEFAULT_FEATURES,
        *,
        queues: int = 1,
        size: int = 128,
        msix: bool = False,
        intx: bool = False,
        apic_id: int = 0,
    ) -> Step[int]:
        """Bring the device up to DRIVER_OK; the result is the device status.

        Each queue has ``size`` descriptors. With ``msix``, queue i interrupts with CPU vector
        0x41 + 5 * slot + i on the CPU ``apic_id``, and a change of the configuration with vector
        0x40 + 5 * slot. ``intx`` uses INTx instead. A second start uses new rings.
        """
        script, slot = self.script, self.slot
        self.initialised = script.initialise(features, slot)
        if msix:
            script.msix(queues + 1, 0x40 + 5 * slot, apic_id, slot)
        if intx:
            script.intx(slot=slot)
        self.rings = [script.arena.ring(size) for _ in range(queues)]
        self.queues = [
            script.queue(ring, i, size, i + 1 if msix else VIRTIO_MSI_NO_VECTOR, slot)
            for i, ring in enumerate(self.rings)
        ]
        return script.ready(slot)

    def submit(
        self,
        requests: Sequence[BlockRequest],
        *,
        queue: int = 0,
        notify: NotifyMode = NotifyMode.IF_WANTED,
        wait: WaitMode | None = WaitMode.POLL,
        expect: int | None = None,
        timeout_us: int = TIMEOUT_US,
    ) -> Batch:
        """Post ``requests`` as one batch and wait for ``expect`` completions (default: all).

        SPIN and IDLE also wait for at least one interrupt. With ``wait`` None the script continues
        at once, and the outcomes show the state at that time.
        """
        script = self.script
        chains = [self._place(request) for request in requests]
        mode = wait or WaitMode.POLL
        posted = script.post([chain for chain, _ in chains], notify, mode, queue, self.slot)
        waited = None
        if wait is not None:
            count = len(requests) if expect is None else expect
            needs = count > 0 and mode is not WaitMode.POLL
            waited = script.wait(count, mode, queue, self.slot, timeout_us, needs)
        placed = tuple(
            self._collect(chain, address, request)
            for (chain, address), request in zip(chains, requests, strict=True)
        )
        return Batch(posted, waited, placed)

    def _place(self, request: BlockRequest) -> tuple[Chain, int]:
        """Lay the request out in memory; return its chain and the address of the data."""
        script, arena = self.script, self.script.arena
        readable = request.header_bytes() + request.data
        source = arena.allocate(len(readable))
        target = arena.allocate(-(-(request.length + 1) // 8) * 8)
        script.write_memory(source, readable)
        word = int.from_bytes(bytes([UNTOUCHED] * 8), "little")
        script.fill_memory(target, -(-(request.length + 1) // 8) * 8, word, 0)
        head = len(readable) - len(request.data)
        segments = [
            *_cut(source, len(readable), request.readable, head, False),
            *_cut(target, request.length + 1, request.writable, request.length, True),
        ]
        table = arena.allocate(16 * len(segments)) if request.indirect else 0
        self._tag += 1
        return Chain(self._tag, segments, table), target

    def _collect(self, chain: Chain, target: int, request: BlockRequest) -> _Placed:
        script, length = self.script, request.length
        status = script.read_memory(target + length, 1)
        data = crc = None
        if length and request.hashed:
            crc = script.hash_memory(target, length)
        elif length:
            data = script.read_memory(target, length)
        return _Placed(chain.tag, chain, status, data, crc)


def _cut(
    start: int, length: int, lengths: Sequence[int] | None, default: int, device_writes: bool
) -> list[Segment]:
    """Segments over ``length`` bytes at ``start``: of ``lengths`` (default: one of ``default``
    bytes), and one for the rest."""
    parts = [default] if lengths is None else list(lengths)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part)
    if ends[-1] > length:
        raise ValueError(f"segments of {sum(parts)} bytes do not fit into {length}")
    ends.append(length)
    return [
        Segment(start + a, b - a, device_writes)
        for i, (a, b) in enumerate(pairwise(ends))
        # A requested length of 0 makes a zero-length descriptor; an empty rest makes none.
        if b > a or (lengths is not None and i < len(parts))
    ]
