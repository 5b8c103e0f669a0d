"""The disks of a machine, as others see them; imported when there are some."""

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from pykvm.devices.virtio_blk import (
    CacheMode,
    DiskOptions,
    EngineKind,
    ImageFormat,
    IoError,
    Locking,
)
from pykvm.devices.virtio_blk.options import limits_of
from pykvm.forms import Form, adapt, flag, member, path, refused
from pykvm.forms import size as bytes_of
from pykvm.lean.records import record
from pykvm.names import name_fields

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk import EngineFactory, Image, RateLimits, VirtioBlk
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan


@record
class DiskConfig(DiskOptions):
    """One virtio-blk disk: its image and its options. UsageError for a value that cannot be.

    The fields of :class:`~pykvm.devices.virtio_blk.options.DiskOptions`, such as ``merge`` and
    ``werror``, are given by name. docs/reference/disk-options.md explains all of them.
    """

    path: "Path | str"
    """A raw image or a block device. The Machine opens it, and raises UsageError if it cannot."""
    readonly: bool = False
    """Offer VIRTIO_BLK_F_RO, and open the image for reading only."""
    snapshot: bool = False
    """Open the image for reading only. Writes go to a temporary file, which is dropped at the
    end."""
    cache: CacheMode = CacheMode.WRITEBACK
    """How the image is cached, and when writes are durable."""
    engine: "EngineKind | EngineFactory" = EngineKind.AUTO
    """What executes the disk's operations: a kind, or a function that makes an Engine."""
    faults: "FaultPlan | None" = None
    """Operations that fail, come back short or take long; a list of Faults stands for its plan."""
    format: ImageFormat | None = None
    """RAW allows an image that looks like another format; None refuses it."""
    locking: Locking = Locking.AUTO
    """Whether the image is locked against other users."""

    def __post_init__(self) -> None:
        adapt(self, _FORMS)
        super().__post_init__()


def _engine(name: str, value: object) -> "EngineKind | EngineFactory":
    if callable(value) and not isinstance(value, EngineKind):
        factory: EngineFactory = value
        return factory
    kind: EngineKind = _engine_kind(name, value)
    return kind


def _faults(name: str, value: object) -> "FaultPlan":
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan

    if isinstance(value, FaultPlan):
        return value
    if isinstance(value, list | tuple):
        return FaultPlan(value)
    raise refused(name, value, "give a FaultPlan or a list of Faults")


_engine_kind: Final = member(EngineKind)
_FORMS: "Final[dict[str, Form]]" = {
    "path": path,
    "readonly": flag,
    "snapshot": flag,
    "cache": member(CacheMode),
    "engine": _engine,
    "faults": _faults,
    "format": member(ImageFormat),
    "locking": member(Locking),
}


def open_image(config: DiskConfig) -> "tuple[Image, EngineFactory, str]":
    """Open what ``config`` asks for; UsageError.

    The image, which belongs to the caller, what makes its engines, and a
    sentence for people: which these are, and why.
    """
    from pykvm.devices.virtio_blk import Image, choose

    readonly = config.readonly or config.snapshot
    image = Image(config.path, readonly, config.cache, config.format, config.locking)
    try:
        engine, reason = choose(image, config.engine)
        # Few runs want any of these: not at the top.
        if image.padding:
            from pykvm.devices.virtio_blk.layers.padding import padded

            engine = padded(engine)
        if config.snapshot and not config.readonly:
            from pykvm.devices.virtio_blk.layers.overlay import OverlayImage

            image = snapshot = OverlayImage(image)
            engine = snapshot.wrap(engine)
        if config.faults:
            engine = config.faults.wrap(engine)
    except BaseException:
        image.close()
        raise
    return image, engine, reason


class IoStatus(Enum):
    """What a disk stopped the guest for since the guest last went on, as QEMU's ``io-status``."""

    OK = "ok"
    """It has not stopped the guest."""
    FAILED = "failed"
    """An error other than a lack of space."""
    NOSPACE = "nospace"
    """The host had no space left."""


class Disk:
    """One disk: its ``name`` ("virtio0", "virtio1", … by their order), ``config`` and ``device``.

    ``engine`` tells people what executes its operations, and why.
    ``last_error`` is the last request that the host could not carry out, or
    None; it stays. ``io_status`` is OK again when the guest goes on.
    """

    def __init__(
        self, name: str, config: DiskConfig, device: "VirtioBlk", engine: str = ""
    ) -> None:
        self.name = name
        self.config = config
        self.device = device
        self.engine = engine
        self.last_error: IoError | None = None
        self.io_status = IoStatus.OK

    def __repr__(self) -> str:
        return f"<Disk {self.name}: {str(self.config.path)!r}, {self.io_status.value}>"

    def pause(self, timeout: float | None = None) -> bool:
        """See VirtioBlk."""
        return self.device.pause(timeout)

    def resume(self) -> None:
        """See VirtioBlk."""
        self.io_status = IoStatus.OK
        self.device.resume()

    def resize(self, size: int) -> None:
        """Let the disk have ``size`` bytes from now on: see VirtioBlk. UsageError."""
        self.device.resize(bytes_of("size", size))

    @property
    def limits(self) -> "RateLimits":
        """How fast it may be; may be set at any time."""
        return self.device.limits

    @limits.setter
    def limits(self, limits: "RateLimits") -> None:
        self.device.limits = limits_of("limits", limits)

    def failed(self, error: IoError) -> None:
        """Note ``error``, which the device has announced."""
        self.last_error = error
        if error.stops and self.io_status is IoStatus.OK:
            self.io_status = IoStatus.NOSPACE if error.full else IoStatus.FAILED

    def statistics(self) -> dict[str, Any]:
        """Its part of ``--stats``; docs/reference/disk-options.md has the keys."""
        stats = self.device.stats
        return {
            "device": self.name,
            **name_fields("path", self.config.path),
            "serial": self.config.serial,
            **stats.as_dict(),
            **stats.histograms(),
            "queues": [queue.counters() for queue in self.device.queue_stats],
        }
