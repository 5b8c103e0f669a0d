"""The disks of a machine, as its users see them. Only machines with disks import this."""

from enum import Enum
from typing import TYPE_CHECKING, Any

from pykvm.devices.virtio_blk.hooks import IoError
from pykvm.devices.virtio_blk.options import limits_of
from pykvm.forms import size as bytes_of
from pykvm.names import name_fields

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk import RateLimits
    from pykvm.devices.virtio_blk.open import OpenDisk


class IoStatus(Enum):
    """The cause for which a disk has stopped the guest since the last resume, as in QEMU."""

    OK = "ok"
    """The disk has not stopped the guest."""
    FAILED = "failed"
    """An error other than a lack of space."""
    NOSPACE = "nospace"
    """The host had no space left."""


class Disk:
    """A disk of a machine: its ``name`` ("virtio0", "virtio1", …), ``config`` and ``device``.

    ``engine`` is a sentence for people: the engine's name, and the reason for the choice.
    ``last_error`` is the last request that the host could not carry out, or None; a resume keeps
    it. ``io_status`` becomes OK again when the guest resumes.
    """

    def __init__(self, name: str, opened: "OpenDisk") -> None:
        self.name = name
        self.config = opened.config
        self.device = opened.device
        self.engine = opened.engine
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
        """Change the size of the disk to ``size`` bytes: see VirtioBlk. UsageError."""
        self.device.resize(bytes_of("size", size))

    @property
    def limits(self) -> "RateLimits":
        """The rate limits; can be set at any time."""
        return self.device.limits

    @limits.setter
    def limits(self, limits: "RateLimits") -> None:
        self.device.limits = limits_of("limits", limits)

    def failed(self, error: IoError) -> None:
        """Remember ``error``, which the device has announced."""
        self.last_error = error
        if error.stops and self.io_status is IoStatus.OK:
            self.io_status = IoStatus.NOSPACE if error.full else IoStatus.FAILED

    def statistics(self) -> dict[str, Any]:
        """The disk's part of ``--stats``; docs/reference/disk-options.md explains the keys."""
        stats = self.device.stats
        return {
            "device": self.name,
            **name_fields("path", self.config.path),
            "serial": self.config.serial,
            **stats.as_dict(),
            **stats.histograms(),
            "queues": [queue.counters() for queue in self.device.queue_stats],
        }
