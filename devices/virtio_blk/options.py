"""The options of a disk, under QEMU's names where it has them. Pure."""

from typing import Final

from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_ID_BYTES
from pykvm.devices.virtio_blk.modes import (
    DetectZeroes,
    DiscardMode,
    ErrorPolicy,
    MergePolicy,
)
from pykvm.devices.virtio_blk.rates import NO_LIMITS, RateLimits
from pykvm.errors import UsageError, shown
from pykvm.forms import Form, adapt, cpus, flag, member, refused, size, text, whole
from pykvm.lean.records import keyword_record

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
LIFETIME: Final = (range(4), range(12), range(12))
"""``lifetime``: pre_eol_info, device_lifetime_est_typ_a and _b (§5.2.6)."""


@keyword_record
class DiskOptions:
    """The options of a disk, except those about its image. UsageError for a value that cannot be.

    A size is a number of bytes, or a string such as ``"4K"``. A member of an enumeration may be
    given by its value. None stands for the default, except in ``seg_max``. The driver decides
    which of the offered features it uses.
    """

    serial: str = ""
    """At most 20 printable ASCII characters. Linux shows them in /sys/block/vda/serial."""
    queue_size: int = 256
    """Descriptors in each queue: a power of 2 from 4 to 1024."""
    num_queues: int = 1
    """Queues: 1 to 64."""
    iothreads: int = 1
    """Threads that serve the queues, at most one for each queue. Queues are assigned in turn."""
    cpu_affinity: frozenset[int] = frozenset()
    """The host's CPUs that these threads run on; empty: any."""
    seg_max: int | None = 0
    """Data segments that the driver should put into a request at most: 1 to 65535; 0: as many as a
    queue holds; None: the driver is told no limit. The device accepts more."""
    size_max: int = 0
    """Bytes that the driver should put into a segment at most: 512 to 2^32 - 1; 0: no limit. The
    device accepts more."""
    merge: MergePolicy = MergePolicy.SEQUENTIAL
    """Which requests become one operation."""
    merge_max: int = 32
    """The most requests in one operation: 1 to 1024."""
    poll_max_ns: int = POLL_NS
    """The longest time to poll a ring before sleeping, in nanoseconds: 0 (never) to 1000000. The
    interpreted form never polls."""
    rerror: ErrorPolicy = ErrorPolicy.REPORT
    """The answer to a read that the host cannot carry out."""
    werror: ErrorPolicy = ErrorPolicy.ENOSPC
    """The answer to every other request that the host cannot carry out."""
    discard: DiscardMode = DiscardMode.UNMAP
    """The treatment of the guest's discards."""
    write_zeroes: bool = True
    """Offer VIRTIO_BLK_F_WRITE_ZEROES."""
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    """The treatment of writes whose data are zeros."""
    logical_block_size: int = 0
    """The guest's unit of access in bytes: a power of 2 from 512 to 4096; 0: the size that suits
    the image."""
    physical_block_size: int = 0
    """The unit to which the guest should align, in bytes: a power of 2 from 512 to 2 MiB; 0: the
    size that suits the image."""
    min_io_size: int = 0
    """The smallest efficient transfer in bytes: whole logical blocks, at most 1 GiB; 0: the host
    device's."""
    opt_io_size: int = 0
    """The best transfer in bytes, in the same range; 0: the host device's."""
    discard_granularity: int = 0
    """The unit of discards in bytes, in the same range; 0: the size that suits the image."""
    cyls: int = 0
    """Cylinders of a geometry: 1 to 65535, with ``heads`` and ``secs``; 0: there is no geometry."""
    heads: int = 0
    """Heads of the geometry: 1 to 255."""
    secs: int = 0
    """Sectors in each track of the geometry: 1 to 255."""
    lifetime: tuple[int, int, int] | None = None
    """The answer to GET_LIFETIME: pre_eol_info, device_lifetime_est_typ_a and _b (virtio 1.2
    §5.2.6); None: VIRTIO_BLK_F_LIFETIME is not offered."""
    flush: bool = True
    """Offer VIRTIO_BLK_F_FLUSH. Without it, every write is durable when it completes."""
    config_wce: bool = True
    """Offer VIRTIO_BLK_F_CONFIG_WCE, so that the guest can switch its write cache."""
    blk_size: bool = True
    """Offer VIRTIO_BLK_F_BLK_SIZE."""
    topology: bool = True
    """Offer VIRTIO_BLK_F_TOPOLOGY."""
    packed: bool = False
    """Offer VIRTIO_F_RING_PACKED."""
    indirect_desc: bool = True
    """Offer VIRTIO_F_INDIRECT_DESC."""
    event_idx: bool = True
    """Offer VIRTIO_F_EVENT_IDX."""
    in_order: bool = False
    """Offer VIRTIO_F_IN_ORDER: requests are answered in the order in which they came."""
    queue_reset: bool = True
    """Offer VIRTIO_F_RING_RESET: the driver may reset one queue."""
    notification_data: bool = False
    """Offer VIRTIO_F_NOTIFICATION_DATA."""
    limits: RateLimits = NO_LIMITS
    """The rate limits at the start. They can be changed while the disk runs."""

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
                f"detect-zeroes=unmap does not work with discard={self.discard.value}",
                "use detect-zeroes=on, or discard=unmap",
            )

    def _check_blocks(self) -> None:
        """Check the block sizes as far as possible without the image."""
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
            f"a disk cannot have the serial '{shown(serial)}'",
            f"use at most {VIRTIO_BLK_ID_BYTES} printable ASCII characters",
        )
