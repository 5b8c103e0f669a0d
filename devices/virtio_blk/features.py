"""The feature bits that a disk offers, and the configuration that explains them. Pure."""

from struct import pack
from typing import Final

from pykvm.devices.virtio_blk.config_space import ConfigSpace
from pykvm.devices.virtio_blk.constants import (
    SECTOR_SIZE,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_LIFETIME,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.core.parser import Accepted
from pykvm.devices.virtio_blk.core.ranges import MAX_RANGES, MAX_SECTORS
from pykvm.devices.virtio_blk.image.host_limits import HostBlocks
from pykvm.devices.virtio_blk.modes import DiscardMode
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.errors import UsageError
from pykvm.lean.records import record
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
)

_PAGE: Final = 4096


def offered(options: DiskOptions, readonly: bool) -> int:
    """The feature bits of a block device (§5.2.3) and of its rings (§6).

    CONFIG_WCE never comes without FLUSH.
    """
    bits = {
        VIRTIO_BLK_F_SIZE_MAX: options.size_max > 0,
        VIRTIO_BLK_F_SEG_MAX: options.seg_max is not None,
        VIRTIO_BLK_F_GEOMETRY: options.cyls > 0,
        VIRTIO_BLK_F_RO: readonly,
        VIRTIO_BLK_F_BLK_SIZE: options.blk_size,
        VIRTIO_BLK_F_FLUSH: options.flush,
        VIRTIO_BLK_F_TOPOLOGY: options.topology,
        VIRTIO_BLK_F_CONFIG_WCE: options.flush and options.config_wce,
        VIRTIO_BLK_F_MQ: options.num_queues > 1,
        VIRTIO_BLK_F_DISCARD: options.discard is not DiscardMode.OFF and not readonly,
        VIRTIO_BLK_F_WRITE_ZEROES: options.write_zeroes and not readonly,
        VIRTIO_BLK_F_LIFETIME: options.lifetime is not None,
        VIRTIO_F_INDIRECT_DESC: options.indirect_desc,
        VIRTIO_F_EVENT_IDX: options.event_idx,
        VIRTIO_F_RING_PACKED: options.packed,
        VIRTIO_F_IN_ORDER: options.in_order,
        VIRTIO_F_NOTIFICATION_DATA: options.notification_data,
        VIRTIO_F_RING_RESET: options.queue_reset,
    }
    return sum(bit for bit, wanted in bits.items() if wanted)


def accepted(options: DiskOptions, features: int) -> Accepted:
    """The requests that the parser accepts after ``features`` were negotiated."""
    lifetime = options.lifetime if features & VIRTIO_BLK_F_LIFETIME else None
    return Accepted(
        discards=bool(features & VIRTIO_BLK_F_DISCARD),
        zeroes=bool(features & VIRTIO_BLK_F_WRITE_ZEROES),
        unmaps=options.discard is DiscardMode.UNMAP,
        lifetime=pack("<3H", *lifetime) if lifetime else b"",
    )


@record
class Blocks:
    """The block sizes of a disk, in bytes. All are multiples of ``logical``.

    The first whole physical block begins at ``aligned``; ``minimum`` and
    ``optimal`` (transfers) are 0 where there is no advice.
    """

    logical: int
    physical: int
    aligned: int
    minimum: int
    optimal: int
    granularity: int

    @classmethod
    def choose(cls, options: DiskOptions, host: HostBlocks, alignment: int = 1) -> "Blocks":
        """The sizes in ``options``; for sizes of 0, those of ``host`` or O_DIRECT. UsageError.

        The host's advice on transfers counts only if it is plausible: the
        minimum in whole physical blocks, and the optimum in whole pages, like
        the stripes of every array. Bridges from USB to SATA are known to advise
        65535 sectors, and a guest would align its partitions to that.
        """
        logical = options.logical_block_size or host.logical
        whole = max(host.physical, logical)
        physical = options.physical_block_size or max(host.physical, alignment, logical)
        if physical < logical:
            raise UsageError(
                f"physical-block-size={physical} is less than logical blocks of {logical} bytes",
                f"use {logical} or more",
            )
        wanted = {
            "min-io-size": (options.min_io_size, _whole(host.minimum, whole)),
            "opt-io-size": (options.opt_io_size, _whole(host.optimal, max(whole, _PAGE))),
            "discard-granularity": (options.discard_granularity, host.granularity),
        }
        sizes = []
        for name, (asked, found) in wanted.items():
            if asked % logical:
                raise UsageError(
                    f"{name}={asked} is not a multiple of logical blocks of {logical} bytes",
                    f"use {logical}, or a multiple of it",
                )
            sizes.append(asked or (0 if found % logical else found))
        minimum, optimal, granularity = sizes
        # The fields of TOPOLOGY hold no more.
        minimum = min(minimum, 0xFFFF * logical)
        aligned = 0 if host.aligned % logical else host.aligned % physical
        if aligned > 0xFF * logical:
            # The field can express where blocks of this smaller size begin. Each block of the
            # larger size begins at one of them.
            physical = 0x100 * logical
            aligned %= physical
        return cls(logical, physical, aligned, minimum, optimal, granularity or logical)

    def check(self, path: str, size: int) -> None:
        """UsageError if the ``size`` of the image at ``path``, in bytes, is not whole blocks."""
        if size % self.logical:
            raise UsageError(
                f"the disk image {path} cannot have logical blocks of {self.logical} bytes: "
                f"its size, {size} bytes, is not a multiple",
                f"use logical-block-size=512, or pad it: truncate -s %{self.logical} {path}",
            )


def _whole(size: int, unit: int) -> int:
    return 0 if size % unit else size


def describe(config: ConfigSpace, options: DiskOptions, blocks: Blocks, unmaps: bool) -> None:
    """Fill in the fields that never change: all but capacity and writeback (§5.2.4).

    ``unmaps``: a write of zeroes can free space.
    """
    fields = {
        "size_max": options.size_max,
        # Header and status need descriptors too (where there are no indirect ones).
        "seg_max": options.seg_max or options.queue_size - 2,
        "cylinders": options.cyls,
        "heads": options.heads,
        "sectors": options.secs,
        "blk_size": blocks.logical,
        "physical_block_exp": (blocks.physical // blocks.logical).bit_length() - 1,
        "alignment_offset": blocks.aligned // blocks.logical,
        "min_io_size": blocks.minimum // blocks.logical,
        "opt_io_size": blocks.optimal // blocks.logical,
        "num_queues": options.num_queues,
        "max_discard_sectors": MAX_SECTORS,
        "max_discard_seg": MAX_RANGES,
        "discard_sector_alignment": blocks.granularity // SECTOR_SIZE,
        "max_write_zeroes_sectors": MAX_SECTORS,
        "max_write_zeroes_seg": MAX_RANGES,
        "write_zeroes_may_unmap": unmaps and options.discard is DiscardMode.UNMAP,
    }
    for name, value in fields.items():
        config.set(name, value)
