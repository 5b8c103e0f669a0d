"""What a user can choose for a disk, under QEMU's names where it has them. Pure."""

import errno
from enum import Enum
from typing import Final

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_ID_BYTES
from pykvm.devices.virtio_blk.rates import NO_LIMITS, RateLimits
from pykvm.errors import UsageError, shown
from pykvm.forms import Form, adapt, cpus, flag, member, refused, size, text, whole
from pykvm.lean.records import keyword_record, record

QUEUE_SIZE: Final = range(4, 1025)
"""``queue-size``: descriptors, a power of 2."""
NUM_QUEUES: Final = range(1, 65)
"""``num-queues`` and ``iothreads``."""
MERGE_MAX: Final = range(1, 1025)
"""``merge-max``: requests in one operation."""
POLL_MAX_NS: Final = range(1_000_001)
"""``poll-max-ns``: nanoseconds, up to a millisecond."""
POLL_NS: Final = 32_768
"""The default of ``poll-max-ns``."""
SEG_MAX: Final = range(1, 1 << 16)
"""``seg-max``: data segments in one request."""
SIZE_MAX: Final = range(512, 1 << 32)
"""``size-max``: bytes in one segment."""
LOGICAL_BLOCK_SIZE: Final = range(512, 4097)
"""``logical-block-size``: bytes; Linux as a guest takes no more."""
PHYSICAL_BLOCK_SIZE: Final = range(512, (2 << 20) + 1)
"""``physical-block-size``: bytes."""
IO_SIZE: Final = range((1 << 30) + 1)
"""``min-io-size``, ``opt-io-size`` and ``discard-granularity``: bytes."""
CYLS: Final = range(1, 1 << 16)
"""``cyls``: cylinders."""
HEADS: Final = range(1, 256)
"""``heads``"""
SECS: Final = range(1, 256)
"""``secs``: sectors in a track."""
NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""No space is left, or none of the quota: an administrator can make some."""
LIFETIME: Final = (range(4), range(12), range(12))
"""``lifetime``: pre_eol_info, device_lifetime_est_typ_a and _b (§5.2.6)."""


class MergePolicy(Enum):
    """Which requests of one drain become one operation; docs/explanation/merging.md."""

    SEQUENTIAL = "sequential"
    """Requests of one direction that follow each other on the disk, in the order of the ring."""
    SORTED = "sorted"
    """Up to ``merge-max`` requests of one direction, sorted by sector."""
    SORTED_BATCH = "sorted-batch"
    """Up to ``merge-max`` writes, sorted by sector, whatever reads come in between."""
    OFF = "off"
    """None."""


class CacheMode(Enum):
    """How the image is cached and when writes are durable, as QEMU's ``cache=``."""

    WRITEBACK = "writeback"
    """The host's page cache; a flush puts writes on stable storage."""
    WRITETHROUGH = "writethrough"
    """The host's page cache; each write is on stable storage when it completes."""
    NONE = "none"
    """O_DIRECT; a flush puts writes on stable storage."""
    DIRECTSYNC = "directsync"
    """O_DIRECT; each write is on stable storage when it completes."""
    UNSAFE = "unsafe"
    """The host's page cache; nothing is ever put on stable storage."""

    @property
    def direct(self) -> bool:
        """Past the host's page cache, with O_DIRECT."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def writeback(self) -> bool:
        """Writes may complete before they are on stable storage. The guest may change that."""
        return self not in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)

    @property
    def syncs(self) -> bool:
        """Flushes and durable writes reach stable storage."""
        return self is not CacheMode.UNSAFE


class ImageFormat(Enum):
    """What an image is (``format=``)."""

    RAW = "raw"
    """The disk's bytes, from the first to the last, whatever they look like."""


class Locking(Enum):
    """Whether an image is locked against other users (``locking=``)."""

    ON = "on"
    """It must be."""
    OFF = "off"
    """No lock is taken, and nobody else's is looked at."""
    AUTO = "auto"
    """It is, unless its filesystem has no locks."""


class EngineKind(Enum):
    """What executes the operations of a disk (``engine=``)."""

    AUTO = "auto"
    """What suits the file and the cache mode."""
    SYNC = "sync"
    """The disk's own thread, one operation after another."""
    THREADS = "threads"
    """A few threads, each one operation at a time."""
    IO_URING = "io_uring"
    """The host's kernel, any number of operations at a time."""


class DiscardMode(Enum):
    """What becomes of the guest's discards (``discard=``)."""

    UNMAP = "unmap"
    """The host gets the space back, if it can take it."""
    IGNORE = "ignore"
    """Nothing; they succeed."""
    OFF = "off"
    """The guest is offered none."""


class DetectZeroes(Enum):
    """What becomes of writes whose data are zeros (``detect-zeroes=``)."""

    OFF = "off"
    """Nobody looks."""
    ON = "on"
    """The host makes zeros, without data."""
    UNMAP = "unmap"
    """… and may free the space."""


class ErrorPolicy(Enum):
    """What becomes of a request that the host could not carry out (``rerror=``, ``werror=``)."""

    REPORT = "report"
    """The guest gets VIRTIO_BLK_S_IOERR."""
    IGNORE = "ignore"
    """The guest gets VIRTIO_BLK_S_OK."""
    STOP = "stop"
    """The VM stops, keeps the request, and tries it again when it goes on."""
    ENOSPC = "enospc"
    """Stop if all that lacks is space, else report."""

    def action(self, full: bool) -> "ErrorAction":
        """What it says of a failure. ``full``: all that lacks is space (NO_SPACE)."""
        if self is ErrorPolicy.ENOSPC:
            return ErrorAction.STOP if full else ErrorAction.REPORT
        return ErrorAction(self.value)


class ErrorAction(Enum):
    """What was done with a request that failed: an :class:`ErrorPolicy` applied to an errno."""

    REPORT = "report"
    IGNORE = "ignore"
    STOP = "stop"


@record
class IoError:
    """A request that the host could not carry out, announced once for each time it fails.

    ``operation`` is one of OPERATION_NAMES, such as ``"read"``. ``sector`` and
    ``length`` (bytes) are the request's: where its first range begins, and the
    length of all. ``errno`` is the host's error. ``lost``: a sync of the image
    has failed, and with that what the host's page cache held; no flush of this
    run succeeds any more, whatever is done about the cause.
    """

    operation: str
    sector: int
    length: int
    errno: int
    action: ErrorAction
    lost: bool = False

    @property
    def full(self) -> bool:
        """All that lacks is space: more of it, and another attempt, would do."""
        return self.errno in NO_SPACE and not self.lost

    @property
    def stops(self) -> bool:
        """The guest is to stop for it."""
        return self.action is ErrorAction.STOP


@keyword_record
class DiskOptions:
    """What a device makes of its image. UsageError for a value that cannot be.

    Sizes may be strings such as ``"4K"``, and members of an enumeration their
    values; None is a default, where nothing else is said.
    ``serial``: at most 20 ASCII characters, what /sys/block/vda/serial shows.
    ``queue_size``: descriptors, a power of 2 from 4 to 1024. ``num_queues``: 1
    to 64, dealt out in turn to ``iothreads`` threads, at most as many; these run
    on the CPUs of the host that ``cpu_affinity`` has, on any if it is empty.
    ``seg_max`` and ``size_max`` (bytes) tell the driver how many data segments
    a request may have, 0 for what the queue holds and None to say nothing, and
    how large each may be, 0 for any size; they are not enforced.
    ``poll_max_ns``: the longest to watch a ring before sleeping (compiled form
    only). ``rerror``, and ``werror`` for all but reads, say what becomes of a
    request that the host cannot carry out.

    ``discard``, ``write_zeroes`` and ``detect_zeroes``: how space is given
    back. ``logical_block_size`` and ``physical_block_size`` (powers of 2),
    ``min_io_size``, ``opt_io_size`` and ``discard_granularity`` (multiples of
    the former) are bytes, 0 for what suits the image. ``cyls``, ``heads`` and
    ``secs``: a geometry, if there is to be one. ``lifetime``: what GET_LIFETIME
    answers (pre_eol_info, device_lifetime_est_typ_a and _b), if anything.
    ``flush``, ``config_wce``, ``blk_size`` and ``topology``: False to offer
    none of it. The switches from ``packed`` on each offer the ring feature of
    that name (virtio 1.2 §6), too; the driver chooses. ``limits``: how fast the
    disk may be, at first.
    """

    serial: str = ""
    queue_size: int = 256
    num_queues: int = 1
    iothreads: int = 1
    cpu_affinity: frozenset[int] = frozenset()
    seg_max: int | None = 0
    size_max: int = 0
    merge: MergePolicy = MergePolicy.SEQUENTIAL
    merge_max: int = 32
    poll_max_ns: int = POLL_NS
    rerror: ErrorPolicy = ErrorPolicy.REPORT
    werror: ErrorPolicy = ErrorPolicy.ENOSPC
    discard: DiscardMode = DiscardMode.UNMAP
    write_zeroes: bool = True
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    logical_block_size: int = 0
    physical_block_size: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    discard_granularity: int = 0
    cyls: int = 0
    heads: int = 0
    secs: int = 0
    lifetime: tuple[int, int, int] | None = None
    flush: bool = True
    config_wce: bool = True
    blk_size: bool = True
    topology: bool = True
    packed: bool = False
    indirect_desc: bool = True
    event_idx: bool = True
    in_order: bool = False
    queue_reset: bool = True
    notification_data: bool = False
    limits: RateLimits = NO_LIMITS

    def __post_init__(self) -> None:
        adapt(self, _FORMS, keep_none=("seg_max",))
        _check_serial(self.serial)
        _check("queue-size", self.queue_size, QUEUE_SIZE)
        if self.queue_size & (self.queue_size - 1):
            raise UsageError(f"queue-size cannot be {self.queue_size}", "use a power of 2")
        _check("num-queues", self.num_queues, NUM_QUEUES)
        _check("iothreads", self.iothreads, NUM_QUEUES)
        if self.iothreads > self.num_queues:
            raise UsageError(
                f"{self.iothreads} threads cannot serve {_queues(self.num_queues)}",
                f"use at most iothreads={self.num_queues}, or raise num-queues",
            )
        _check("merge-max", self.merge_max, MERGE_MAX)
        _check("poll-max-ns", self.poll_max_ns, POLL_MAX_NS)
        if self.seg_max:
            _check("seg-max", self.seg_max, SEG_MAX)
        if self.size_max:
            _check("size-max", self.size_max, SIZE_MAX)
        self._check_blocks()
        geometry = (self.cyls, self.heads, self.secs)
        if any(geometry):
            if not all(geometry):
                raise UsageError("a geometry needs cyls, heads and secs", "give all three or none")
            _check("cyls", self.cyls, CYLS)
            _check("heads", self.heads, HEADS)
            _check("secs", self.secs, SECS)
        if self.lifetime is not None:
            for value, allowed in zip(self.lifetime, LIFETIME, strict=True):
                _check("lifetime", value, allowed)
        if self.detect_zeroes is DetectZeroes.UNMAP and self.discard is not DiscardMode.UNMAP:
            raise UsageError(
                f"detect-zeroes=unmap cannot be with discard={self.discard.value}",
                "use detect-zeroes=on, or discard=unmap",
            )

    def _check_blocks(self) -> None:
        """What can be said of them without the image."""
        for name, value, allowed in (
            ("logical-block-size", self.logical_block_size, LOGICAL_BLOCK_SIZE),
            ("physical-block-size", self.physical_block_size, PHYSICAL_BLOCK_SIZE),
        ):
            if value:
                _check(name, value, allowed)
                if value & (value - 1):
                    raise UsageError(f"{name} cannot be {value}", "use a power of 2")
        for name, value in (
            ("min-io-size", self.min_io_size),
            ("opt-io-size", self.opt_io_size),
            ("discard-granularity", self.discard_granularity),
        ):
            _check(name, value, IO_SIZE)


def _lifetime(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, tuple | list) and len(value) == len(LIFETIME):
        return tuple(whole(name, part) for part in value)
    raise refused(name, value, "give three numbers, such as (1, 2, 3)")


def limits_of(name: str, value: object) -> RateLimits:
    """The form of rate limits (:mod:`pykvm.forms`)."""
    if isinstance(value, RateLimits):
        return value
    raise refused(name, value, "give RateLimits, such as RateLimits(iops=100)")


_FORMS: "Final[dict[str, Form]]" = {
    **dict.fromkeys(DiskOptions.__annotations__, flag),
    "serial": text,
    **dict.fromkeys(("queue_size", "num_queues", "iothreads", "seg_max", "merge_max"), whole),
    **dict.fromkeys(("poll_max_ns", "cyls", "heads", "secs"), whole),
    "cpu_affinity": cpus,
    **dict.fromkeys(("size_max", "logical_block_size", "physical_block_size"), size),
    **dict.fromkeys(("min_io_size", "opt_io_size", "discard_granularity"), size),
    "merge": member(MergePolicy),
    "rerror": member(ErrorPolicy),
    "werror": member(ErrorPolicy),
    "discard": member(DiscardMode),
    "detect_zeroes": member(DetectZeroes),
    "lifetime": _lifetime,
    "limits": limits_of,
}


def _queues(number: int) -> str:
    return "one queue" if number == 1 else f"{number} queues"


def _check(name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise UsageError(f"{name} cannot be {value}", f"use {allowed[0]} to {allowed[-1]}")


def _check_serial(serial: str) -> None:
    if not serial.isascii() or not (serial.isprintable() and len(serial) <= VIRTIO_BLK_ID_BYTES):
        raise UsageError(
            f"the serial '{shown(serial)}' cannot be a disk's",
            f"use at most {VIRTIO_BLK_ID_BYTES} printable ASCII characters",
        )
