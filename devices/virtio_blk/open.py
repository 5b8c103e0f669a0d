"""A disk from its options to its device. Every disk is opened here, with a machine or without::

    with open_disk(DiskConfig("disk.img")) as disk, FakeTransport(disk.device) as transport:
        transport.start()

A transport carries the requests of a driver; ``pykvm.testing.fake_transport`` is one for tests.
"""

from typing import TYPE_CHECKING, Final

from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.hooks import NO_HOOKS, DeviceHooks
from pykvm.devices.virtio_blk.modes import CacheMode, EngineKind, ImageFormat, Locking
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.errors import UsageError
from pykvm.forms import Form, adapt, flag, member, path, refused, size
from pykvm.lean.records import record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pykvm.devices.virtio_blk.device import VirtioBlk
    from pykvm.devices.virtio_blk.engines.base import EngineFactory
    from pykvm.devices.virtio_blk.image.file import Image
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace
    from pykvm.devices.virtio_blk.serving.io_thread_group import IoThreadGroup

MOST_BLANK: Final = 1 << 60
"""Bytes of a blank disk. The host's memory holds only what the guest writes."""


@record
class DiskConfig(DiskOptions):
    """One virtio-blk disk: its image and its options. UsageError for a value that cannot be.

    The fields of :class:`~pykvm.devices.virtio_blk.options.DiskOptions`, such as ``merge`` and
    ``werror``, are given by name. docs/reference/disk-options.md explains all of them.
    """

    path: "Path | str" = ""
    """A raw image or a block device. It is opened with the disk, or UsageError."""
    blank: int = 0
    """Instead of a path: bytes, or a size such as ``"64M"``, of a disk of zeros in the host's
    memory, which is dropped at the end."""
    readonly: bool = False
    """Offer VIRTIO_BLK_F_RO, and open the image for reading only."""
    snapshot: bool = False
    """Open the image for reading only. Writes go to a temporary file, which is dropped at the
    end."""
    cache: CacheMode = CacheMode.WRITEBACK
    """How the image is cached, and when writes are durable."""
    engine: "EngineKind | EngineFactory" = EngineKind.AUTO
    """The engine of the disk's operations: a kind, or a function that makes an Engine."""
    faults: "FaultPlan | None" = None
    """Operations that fail, come back short or take long; a list of Faults stands for its plan."""
    format: ImageFormat | None = None
    """RAW allows an image that looks like a different format; None refuses it."""
    locking: Locking = Locking.AUTO
    """Whether the image is locked against other users."""

    def __post_init__(self) -> None:
        adapt(self, _FORMS)
        super().__post_init__()
        if self.blank:
            self._check_blank()
        elif not self.path:
            raise UsageError("a disk needs an image", "give a path, or blank and a size")

    def _check_blank(self) -> None:
        fields = {
            "path": self.path != "",
            "readonly": self.readonly,
            "snapshot": self.snapshot,
            "format": self.format is not None,
            "cache": self.cache is not CacheMode.WRITEBACK,
        }
        for name, given in fields.items():
            if given:
                raise UsageError(f"a blank disk has no {name}", f"leave out {name}, or blank")
        if self.blank % SECTOR_SIZE or not 0 < self.blank <= MOST_BLANK:
            raise UsageError(
                f"a blank disk cannot have {self.blank} bytes",
                f"give a multiple of {SECTOR_SIZE} up to {MOST_BLANK}",
            )

    @property
    def name(self) -> str:
        """The disk's image for people: its path, or the word for a blank disk."""
        return f"blank={self.blank}" if self.blank else str(self.path)


def _path(name: str, value: object) -> "Path | str":
    return "" if value == "" else path(name, value)


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
    "path": _path,
    "blank": size,
    "readonly": flag,
    "snapshot": flag,
    "cache": member(CacheMode),
    "engine": _engine,
    "faults": _faults,
    "format": member(ImageFormat),
    "locking": member(Locking),
}


class OpenDisk:
    """An open disk. A context manager, which closes it.

    ``config`` is its configuration. ``image`` is the open image, and ``device`` the device that
    any virtio transport can host; the device owns the image and the engines. ``engine`` is a
    sentence for people without a full stop: the engine's name, and the reason for the choice.
    """

    def __init__(
        self, config: DiskConfig, image: "Image", device: "VirtioBlk", engine: str
    ) -> None:
        self.config = config
        self.image = image
        self.device = device
        self.engine = engine

    def __enter__(self) -> "OpenDisk":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Reset the device, and close its engines and the image. May be repeated."""
        self.device.close()


# DiskConfig is also for programs that open no disk: the device is imported when one is opened.


def open_disk(
    config: DiskConfig,
    hooks: DeviceHooks = NO_HOOKS,
    *,
    trace: "DiskTrace | None" = None,
    threads: "Callable[..., IoThreadGroup] | None" = None,
) -> OpenDisk:
    """Open the disk that ``config`` describes. UsageError if that is impossible.

    The device calls ``hooks``, and records each step in ``trace``. ``threads`` replaces the
    disk's threads in tests, as in VirtioBlk.
    """
    image, make_engine, reason = open_image(config)
    try:
        from pykvm.devices.virtio_blk.device import VirtioBlk

        if trace is not None:
            trace.begun(image.path, image.capacity, image.readonly)
        device = VirtioBlk(
            image, config, engine=make_engine, hooks=hooks, trace=trace, threads=threads
        )
    except BaseException:
        image.close()
        raise
    return OpenDisk(config, image, device, reason)


def open_image(config: DiskConfig) -> "tuple[Image, EngineFactory, str]":
    """Open the image of ``config``, and choose its engine. UsageError if that is impossible.

    Returns the image, which the caller closes, the maker of its engines, and the sentence that
    :class:`OpenDisk` has as ``engine``.
    """
    from pykvm.devices.virtio_blk.engines.choice import choose
    from pykvm.devices.virtio_blk.image.file import Image

    if config.blank:
        from pykvm.devices.virtio_blk.layers.overlay import OverlayImage

        image: Image = OverlayImage(None, config.blank)
    else:
        readonly = config.readonly or config.snapshot
        image = Image(config.path, readonly, config.cache, config.format, config.locking)
    try:
        engine, reason = choose(image, config.engine)
        # Few runs need these layers.
        if image.padding:
            from pykvm.devices.virtio_blk.layers.padding import padded

            engine = padded(engine)
        if config.blank or (config.snapshot and not config.readonly):
            from pykvm.devices.virtio_blk.layers.overlay import OverlayImage

            overlay = image if isinstance(image, OverlayImage) else OverlayImage(image)
            image, engine = overlay, overlay.wrap(engine)
        if config.faults:
            engine = config.faults.wrap(engine)
    except BaseException:
        image.close()
        raise
    return image, engine, reason
