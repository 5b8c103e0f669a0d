"""The results of a script: a record of each operation, in an area of guest RAM for each vCPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pykvm.bare import layout
from pykvm.bare.latency import Latencies
from pykvm.bare.layout import Layout, RecordError, Region, RunState

T = TypeVar("T")


class ScriptError(AssertionError):
    """An operation failed or never ran, so the test failed."""


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one operation. Times are values of the guest's TSC."""

    code: int
    error: RecordError
    data: bytes
    begin: int
    end: int

    @property
    def ticks(self) -> int:
        """The duration of the operation in TSC ticks."""
        return self.end - self.begin


Decoder = Callable[[Record], T]
"""Turns an operation's record into its result."""


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """One operation of the script of vCPU ``cpu``. ``decode`` turns its record into its result."""

    cpu: int
    index: int
    decode: Decoder[T]


@dataclass(frozen=True, slots=True)
class Area:
    """The results area of one vCPU. The last four fields have a meaning if ``state`` is FAILED."""

    state: RunState
    records: tuple[Record, ...]
    vector: int
    error_code: int
    rip: int
    cr2: int


class Results:
    """The results of a whole script: ``results[step]`` is the result of that step."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        """``read(address, length)`` reads guest RAM, for example :meth:`pykvm.memory.Ram.read`."""
        self.areas = [_read_area(read, cpu) for cpu in range(layout.CPUS_MAX)]

    def record(self, step: Step[T]) -> Record:
        """The raw record of ``step``, failed or not; ScriptError if it never ran."""
        area = self.areas[step.cpu]
        if step.index >= len(area.records):
            raise ScriptError(
                f"operation {step.index} of vCPU {step.cpu} did not run to its end: "
                f"{area.state.name}, {len(area.records)} records, vector {area.vector}, "
                f"rip {area.rip:#x}, cr2 {area.cr2:#x}"
            )
        return area.records[step.index]

    def __getitem__(self, step: Step[T]) -> T:
        """The result of ``step``; ScriptError if it failed."""
        record = self.record(step)
        if record.error:
            code = layout.OpCode(record.code).name
            raise ScriptError(
                f"operation {step.index} of vCPU {step.cpu} ({code}): {record.error.name}"
            )
        return step.decode(record)

    def whatever(self, step: Step[T]) -> T:
        """The result of ``step``, even if the step failed and the result is incomplete."""
        return step.decode(self.record(step))


def _read_area(read: Callable[[int, int], bytes], cpu: int) -> Area:
    address = layout.RESULTS_BASE + cpu * layout.RESULTS_SIZE
    header = read(address, layout.RESULTS_HEADER.size)
    magic, state, used, count, vector, error_code, rip, cr2 = layout.RESULTS_HEADER.unpack(header)
    # An exception before the first record leaves no magic number.
    if magic != layout.RESULTS_MAGIC:
        used = count = 0
    data = read(address, min(used, layout.RESULTS_SIZE))
    return Area(RunState(state), _records(data, count), vector, error_code, rip, cr2)


def _records(data: bytes, count: int) -> tuple[Record, ...]:
    records = []
    at = layout.RESULTS_HEADER.size
    for _ in range(count):
        code, error, size, _, payload, begin, end = layout.RECORD_HEADER.unpack(data[at:])
        start = at + layout.RECORD_HEADER.size
        body = data[start : start + payload]
        records.append(Record(code, RecordError(error), body, begin, end))
        at += size
    return tuple(records)


def nothing(record: Record) -> None:
    """Decodes the record of an operation without a result."""


def raw(record: Record) -> bytes:
    """Decodes a record whose result is its bytes."""
    return record.data


def fields_of(structure: Layout, make: Callable[..., T]) -> Decoder[T]:
    """Decodes a C structure whose fields are those of ``make``, in order."""
    return lambda record: make(*structure.unpack(record.data))


def value(record: Record) -> int:
    """Decodes a ``value_result``."""
    found: int
    (found,) = layout.VALUE_RESULT.unpack(record.data)
    return found


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A PCI function on bus 0. ``bdf`` is bus << 8 | device << 3 | function."""

    bdf: int
    header_type: int
    interrupt_line: int
    vendor: int
    device: int
    class_revision: int


def pci_functions(record: Record) -> list[PciFunction]:
    """Decodes PCI_SCAN."""
    found = []
    for bdf, header, line, id_, class_ in layout.PCI_FUNCTION.packer.iter_unpack(record.data):
        found.append(PciFunction(bdf, header, line, id_ & 0xFFFF, id_ >> 16, class_))
    return found


@dataclass(frozen=True, slots=True)
class Structure:
    """The place of a structure of a virtio function. Guest-physical ``address``; 0: absent."""

    address: int
    length: int
    bar: int


@dataclass(frozen=True, slots=True)
class OpenResult:
    """A virtio function as the driver found it; ``pci_cfg`` and ``msix`` are capability offsets."""

    bdf: int
    interrupt_line: int
    interrupt_pin: int
    notify_multiplier: int
    regions: dict[Region, Structure]
    pci_cfg: int
    msix: int

    @classmethod
    def decode(cls, record: Record) -> "OpenResult":
        """Decodes OPEN."""
        bdf, line, pin, multiplier, *rest = layout.OPEN_RESULT.unpack(record.data)
        regions = {r: Structure(rest[r], rest[5 + r], rest[10 + r]) for r in Region}
        return cls(bdf, line, pin, multiplier, regions, rest[15], rest[16])


@dataclass(frozen=True, slots=True)
class InitialiseResult:
    """Feature negotiation: the offered and accepted features, and the device's state afterwards."""

    offered: int
    accepted: int
    status: int
    queues: int
    generation: int


@dataclass(frozen=True, slots=True)
class QueueResult:
    """``size_max`` is queue_size before the driver writes it. ``vector`` is the value read back."""

    size_max: int
    size: int
    notify_offset: int
    vector: int
    notify_address: int


@dataclass(frozen=True, slots=True)
class PostResult:
    """Chains put into the available ring, and notifications sent for them (0 or 1)."""

    posted: int
    notifications: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One used element. ``tag`` is None if no chain in flight has its id. ``tsc``: when seen."""

    id: int
    length: int
    tag: int | None
    tsc: int


@dataclass(frozen=True, slots=True)
class WaitResult:
    """Used elements in ring order, and the interrupts since the last post that asked for them."""

    completions: tuple[Completion, ...]
    interrupts: int

    @classmethod
    def decode(cls, record: Record) -> "WaitResult":
        """Decodes WAIT."""
        size = layout.WAIT_RESULT.size
        count, interrupts = layout.WAIT_RESULT.unpack(record.data)
        elements = layout.COMPLETION.packer.iter_unpack(record.data[size:])
        done = [Completion(i, n, None if t == 0xFFFFFFFF else t, tsc) for i, n, t, tsc in elements]
        assert len(done) == count
        return cls(tuple(done), interrupts)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The figures of a closed loop. Times are in TSC ticks.

    ``latencies`` are of requests, from the post until the driver sees the used element. ``exits``
    are the durations of reads of the device's status, if the load makes them.
    """

    completed: int
    errors: int
    notifications: int
    interrupts: int
    ticks: int
    latencies: Latencies
    exits: Latencies

    @classmethod
    def decode(cls, record: Record) -> "LoadResult":
        """Decodes LOAD."""
        *counts, requests, exits = layout.LOAD_RESULT.unpack(record.data)
        completed, errors, notifications, interrupts, ticks = counts
        return cls(
            *(completed, errors, notifications, interrupts, ticks),
            *(Latencies.decode(requests), Latencies.decode(exits)),
        )

    def __add__(self, other: "LoadResult") -> "LoadResult":
        """Two simultaneous loads as one, which lasted as long as the longer one."""
        return LoadResult(
            completed=self.completed + other.completed,
            errors=self.errors + other.errors,
            notifications=self.notifications + other.notifications,
            interrupts=self.interrupts + other.interrupts,
            ticks=max(self.ticks, other.ticks),
            latencies=self.latencies + other.latencies,
            exits=self.exits + other.exits,
        )


@dataclass(frozen=True, slots=True)
class PingPongResult:
    """The number of rounds, and the TSC ticks of the fastest one.

    Only vCPUs that run at the same time need less than a time slice. The first round includes the
    wait for the other vCPU.
    """

    rounds: int
    fastest: int


def counters(record: Record) -> dict[int, int]:
    """Decodes COUNTERS: the number of interrupts by CPU vector, without vectors that had none."""
    counts = memoryview(record.data).cast("I")
    return {layout.VECTOR_IRQ_FIRST + i: count for i, count in enumerate(counts) if count}
