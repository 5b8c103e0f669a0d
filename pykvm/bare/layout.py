"""The bare guest's memory map and the structures of its scripts, as in guest/bare/*.h.

tests/bare/test_bare_layout.py compiles the headers and compares them with this file.
"""

from collections.abc import Iterable
from enum import IntEnum
from functools import cached_property
from struct import Struct
from typing import Any

RESULTS_BASE = 0x200000
RESULTS_SIZE = 0x80000
ARENA_BASE = 0x400000
ARENA_SIZE = 0xA00000
CPUS_MAX = 4
VECTOR_IRQ_FIRST = 0x40
VECTOR_IRQ_END = 0x60
VECTOR_INTX = 0x60
COUNTER_INTX_EMPTY = 0x61
"""Not a vector: the counter of INTx interrupts whose ISR register read 0."""
LATENCY_FIRST = 8
LATENCY_STEPS = 16
LATENCY_BUCKETS = 32 * LATENCY_STEPS
SCRIPT_MAGIC = int.from_bytes(b"BARESCR1", "little")
RESULTS_MAGIC = int.from_bytes(b"BARERES1", "little")

MEMORY_NEEDED = 18 << 20
"""The guest RAM, in bytes, that suffices for any script of up to 4 MiB."""


class OpCode(IntEnum):
    """``enum op_code``."""

    EXIT = 1
    PRINT = 2
    WRITE_MEMORY = 3
    READ_MEMORY = 4
    FILL_MEMORY = 5
    HASH_MEMORY = 6
    PORT = 7
    MMIO = 8
    PCI_CONFIG = 9
    PCI_SCAN = 10
    OPEN = 11
    REGISTER = 12
    INITIALISE = 13
    QUEUE = 14
    READY = 15
    MSIX = 16
    INTX = 17
    POST = 18
    NOTIFY = 19
    WAIT = 20
    RESET = 21
    RELOCATE = 22
    SLEEP = 23
    COUNTERS = 24
    LOAD = 25
    SPAWN = 26
    JOIN = 27
    PING_PONG = 28


class RecordError(IntEnum):
    """``enum record_error``: how an operation failed."""

    NONE = 0
    UNKNOWN_OP = 1
    BAD_ARGUMENT = 2
    TIMEOUT = 3
    NO_DEVICE = 4
    NO_CAPABILITY = 5
    NO_DESCRIPTORS = 6
    REFUSED = 7
    NO_SPACE = 8


class RunState(IntEnum):
    """``enum run_state``."""

    NOT_STARTED = 0
    ACTIVE = 1
    FINISHED = 2
    FAILED = 3


class Region(IntEnum):
    """``enum region``: a structure of a virtio function in a BAR."""

    COMMON = 0
    NOTIFY = 1
    ISR = 2
    DEVICE = 3
    MSIX = 4


class NotifyMode(IntEnum):
    """``enum notify_mode``: when a posted batch ends with a notification."""

    NEVER = 0
    IF_WANTED = 1
    ALWAYS = 2


class WaitMode(IntEnum):
    """``enum wait_mode``: how the driver waits for used buffers."""

    POLL = 0
    SPIN = 1
    IDLE = 2


class Layout:
    """One C structure: its name, and its fields in order with :mod:`struct` formats."""

    def __init__(self, name: str, fields: str) -> None:
        """``fields`` has the form ``"Q address, I length"``. ``5B`` is an array, ``4x`` padding."""
        self.name = name
        self.fields = [(part.split()[1], part.split()[0]) for part in fields.split(", ")]

    @cached_property
    def packer(self) -> Struct:
        """The structure's format."""
        return Struct("<" + "".join(code for _, code in self.fields))

    @property
    def size(self) -> int:
        """In bytes."""
        return self.packer.size

    def pack(self, *values: int) -> bytes:
        """The bytes of the structure with ``values``, which leave out reserved fields."""
        return self.packer.pack(*values)

    def unpack(self, data: bytes) -> tuple[Any, ...]:
        """The values at the start of ``data`` without reserved fields; structures as bytes."""
        return self.packer.unpack_from(data)

    def offsets(self) -> Iterable[tuple[str, int]]:
        """Each field's name and offset in bytes."""
        offset = 0
        for name, code in self.fields:
            yield name, offset
            offset += Struct("<" + code).size


SCRIPT_HEADER = Layout("script_header", "Q magic, I size, I tsc_khz")
OP_HEADER = Layout("op_header", "H code, H flags, I size")
RESULTS_HEADER = Layout(
    "results_header", "Q magic, I state, I used, I records, I vector, Q error_code, Q rip, Q cr2"
)
RECORD_HEADER = Layout(
    "record_header", "H code, H error, I size, I index, I payload, Q tsc_begin, Q tsc_end"
)
VALUE_RESULT = Layout("value_result", "Q value")
OP_EXIT = Layout("op_exit", "I status, 4x reserved")
OP_PRINT = Layout("op_print", "I port, I length")
OP_MEMORY = Layout("op_memory", "Q address, I length, 4x reserved")
OP_FILL = Layout("op_fill", "Q address, Q seed, Q step, I length, 4x reserved")
OP_ACCESS = Layout("op_access", "Q address, Q value, B width, B write, 2x reserved, I count")
PCI_FUNCTION = Layout(
    "pci_function", "H bdf, B header_type, B interrupt_line, I id, I class_revision"
)
OP_OPEN = Layout("op_open", "I slot, I device_id, I nth, 4x reserved")
OPEN_RESULT = Layout(
    "open_result",
    "H bdf, B interrupt_line, B interrupt_pin, I notify_multiplier, 5Q region, 5I length, 5B bar,"
    " B pci_cfg, B msix, 5x reserved",
)
OP_REGISTER = Layout(
    "op_register", "I slot, I offset, Q value, B region, B width, B write, 5x reserved"
)
OP_INITIALISE = Layout("op_initialise", "I slot, 4x reserved, Q features")
INITIALISE_RESULT = Layout(
    "initialise_result", "Q offered, Q accepted, I status, H queues, B generation, x reserved"
)
OP_QUEUE = Layout(
    "op_queue", "I slot, H queue, H size, Q descriptors, Q available, Q used, H vector, 6x reserved"
)
QUEUE_RESULT = Layout(
    "queue_result", "H size_max, H size, H notify_offset, H vector, Q notify_address"
)
OP_SLOT = Layout("op_slot", "I slot, 4x reserved")
OP_MSIX = Layout("op_msix", "I slot, H count, B first, B apic_id")
OP_INTX = Layout("op_intx", "I slot, I gsi")
OP_POST = Layout("op_post", "I slot, H queue, B notify, B wait, I chains, 4x reserved2")
CHAIN = Layout("chain", "Q indirect, I tag, I segments")
SEGMENT = Layout("segment", "Q address, I length, I flags")
POST_RESULT = Layout("post_result", "I posted, I notifications")
OP_NOTIFY = Layout("op_notify", "I slot, H queue, H value")
OP_WAIT = Layout("op_wait", "I slot, H queue, B mode, x reserved, I count, I timeout_us")
WAIT_RESULT = Layout("wait_result", "I completions, I interrupts")
COMPLETION = Layout("completion", "I id, I length, I tag, 4x reserved, Q tsc")
OP_RELOCATE = Layout("op_relocate", "I slot, I bar, Q address")
OP_SLEEP = Layout("op_sleep", "I microseconds, 4x reserved")
OP_LOAD = Layout(
    "op_load",
    "I slot, H queue, B wait, B notify, I type, I depth, I total, I sectors, Q first, Q stride,"
    " Q span, Q random, Q headers, Q buffers, Q indirect, I timeout_us, I duration_us,"
    " H queues, H segments, B exits, 3x reserved",
)
LATENCIES = Layout("latencies", f"Q sum, Q least, Q most, {LATENCY_BUCKETS}I counts")
LOAD_RESULT = Layout(
    "load_result",
    "I completed, I errors, I notifications, I interrupts, Q ticks,"
    f" {LATENCIES.size}s requests, {LATENCIES.size}s exits",
)
OP_SPAWN = Layout("op_spawn", "I apic_id, I length, I timeout_us, 4x reserved")
OP_JOIN = Layout("op_join", "I apic_id, I timeout_us")
OP_PING_PONG = Layout("op_ping_pong", "Q address, I turn, I rounds, I timeout_us, 4x reserved")
PING_PONG_RESULT = Layout("ping_pong_result", "Q rounds, Q fastest")

LAYOUTS = tuple(value for value in list(globals().values()) if isinstance(value, Layout))
"""Every structure above, for the test that compares it with the headers."""
