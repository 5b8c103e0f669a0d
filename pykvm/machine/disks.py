"""The disks of a machine, as its users see them. Only machines with disks import this."""

from enum import Enum

from pykvm.devices.virtio_blk.constants import OPERATION_NAMES
from pykvm.devices.virtio_blk.hooks import IoError
from pykvm.devices.virtio_blk.modes import ErrorAction
from pykvm.devices.virtio_blk.options import limits_of
from pykvm.errors import UsageError
from pykvm.forms import size as bytes_of
from pykvm.forms import whole
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Final
from pykvm.names import name_fields

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk import RateLimits
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan
    from pykvm.devices.virtio_blk.layers.frozen import Layers
    from pykvm.devices.virtio_blk.observe.stats import Stats
    from pykvm.devices.virtio_blk.open import OpenDisk
    from pykvm.devices.virtio_blk.recording import Recording
    from pykvm.pci.virtio_pci import VirtioPci
    from pykvm.snapshot.fields import Fields, Saved


MOST_CONFIG: Final = 10_000
"""Characters of a disk's configuration in a snapshot."""


class IoStatus(Enum):
    """The cause for which a disk has stopped the guest since the last resume, as in QEMU."""

    OK = "ok"
    """The disk has not stopped the guest."""
    FAILED = "failed"
    """An error other than a lack of space."""
    NOSPACE = "nospace"
    """The host had no space left."""


def _load_error(saved: "Saved") -> IoError | None:
    if saved.empty:
        return None
    operation = saved.text("operation", 16)
    sector, length = (saved.integer(name, 0, 1 << 63) for name in ("sector", "length"))
    number = saved.integer("errno", 0, 4095)
    action, lost = saved.text("action", 16), saved.flag("lost")
    saved.end()
    actions = {one.value: one for one in ErrorAction}
    if operation not in OPERATION_NAMES.values() or action not in actions:
        saved.refuse("it is no failure of a disk")
    return IoError(operation, sector, length, number, actions[action], lost)


class Disk:
    """A disk of a machine: its ``name`` ("virtio0", "virtio1", …), ``config`` and ``device``.

    ``engine`` is a sentence for people: the engine's name, and the reason for the choice.
    ``last_error`` is the last request that the host could not carry out, or None; a resume keeps
    it. ``io_status`` becomes OK again when the guest resumes.
    """

    def __init__(self, name: str, opened: "OpenDisk", function: "VirtioPci") -> None:
        self.name = name
        self._function = function
        self.config = opened.config
        self.device = opened.device
        self.engine = opened.engine
        self._opened = opened
        self.last_error: IoError | None = None
        self.io_status = IoStatus.OK

    @property
    def number(self) -> int:
        """Its device number on PCI bus 0, such as 3 for ``/sys/bus/pci/devices/0000:00:03.0``."""
        return self._function.number

    def __repr__(self) -> str:
        return f"<Disk {self.name}: {self.config.name!r}, {self.io_status.value}>"

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

    @property
    def faults(self) -> "FaultPlan":
        """The plan of failures, whose rules can be changed at any time. UsageError without one.

        Every disk of :func:`pykvm.boot` has a plan; other disks have the one of their DiskConfig.
        """
        if self.config.faults is None:
            raise UsageError(
                f"the disk {self.name} has no plan of failures",
                "give its DiskConfig one before it starts: faults=FaultPlan()",
            )
        return self.config.faults

    def failed(self, error: IoError) -> None:
        """Remember ``error``, which the device has announced."""
        self.last_error = error
        if error.stops and self.io_status is IoStatus.OK:
            self.io_status = IoStatus.NOSPACE if error.full else IoStatus.FAILED

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the disk's content from byte ``offset`` on. UsageError; HostError.

        The guest may hold newer data in its own cache: have it sync before, and pause it if it
        could write meanwhile. Faults and rate limits do not apply.
        """
        from pykvm.devices.virtio_blk.content import read

        with self.device.image_lock:
            return read(self._opened.image, whole("offset", offset), whole("length", length))

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data`` at byte ``offset``. UsageError, such as beyond the end; HostError.

        A guest that has read these sectors before may go on with its cached copy: in Linux,
        ``echo 3 > /proc/sys/vm/drop_caches`` drops it.
        """
        from pykvm.devices.virtio_blk.content import write

        with self.device.image_lock:
            write(self._opened.image, whole("offset", offset), bytes(data))

    def record(self) -> "Recording":
        """Record all writes and flushes of the guest from now on, for power cuts: see Recording.

        UsageError if the disk is being recorded already. HostError.
        """
        from pykvm.devices.virtio_blk.recording import Recording

        return Recording(self.device)

    # -- snapshots: the disk is paused --------------------------------------------

    def check_can_go_back(self) -> None:
        """UsageError unless the disk can go back to an earlier content."""
        from pykvm.devices.virtio_blk.saved import check_can_go_back

        check_can_go_back(self._opened)

    def save(self) -> "Fields":
        """The disk's state, but for that of its PCI function and its layers. SnapshotError."""
        from pykvm.devices.virtio_blk.saved import config_text, save_disk

        error = self.last_error
        return {
            "name": self.name,
            "number": self.number,
            "config": config_text(self.config),
            "io_status": self.io_status.value,
            "last_error": {} if error is None else vars(error) | {"action": error.action.value},
            "disk": save_disk(self._opened),
        }

    def prepare_freeze(self) -> None:
        """Do what takes long before :meth:`freeze`, while the guest runs. SnapshotError."""
        from pykvm.devices.virtio_blk.saved import prepare_freeze

        prepare_freeze(self._opened)

    def freeze(self) -> "Layers | None":
        """After :meth:`save`: freeze the guest's writes so far. They belong to the caller.

        None if the disk has no overlay. SnapshotError.
        """
        from pykvm.devices.virtio_blk.saved import freeze

        return freeze(self._opened)

    def check(self, fields: "Saved") -> None:
        """SnapshotError unless this is the disk that was saved, and its image is unchanged."""
        from pykvm.devices.virtio_blk.saved import check_disk

        check_disk(self._opened, fields.part("disk"))

    def load(self, fields: "Saved", layers: "Layers | None") -> None:
        """Take over what :meth:`save` and :meth:`freeze` gave. SnapshotError.

        The disk is new, or paused. Its PCI function comes next.
        """
        from pykvm.devices.virtio_blk.saved import load_disk

        fields.text("name", 64)
        fields.integer("number", 0, 31)
        fields.text("config", MOST_CONFIG)
        status, error = fields.text("io_status", 16), fields.part("last_error")
        load_disk(self._opened, fields.part("disk"), layers)
        fields.end()
        if status not in [one.value for one in IoStatus]:
            fields.refuse(f"io_status is {status}")
        self.io_status = IoStatus(status)
        self.last_error = _load_error(error)

    @property
    def stats(self) -> "Stats":
        """The counters of all queues together, until now."""
        return self.device.stats

    @property
    def notifications(self) -> int:
        """The number of times that the guest's driver has notified the disk."""
        return self._function.notifications

    def statistics(self) -> dict[str, Any]:
        """The disk's part of ``--stats``; docs/reference/disk-options.md explains the keys."""
        stats = self.device.stats
        return {
            "device": self.name,
            **name_fields("path", self.config.name),
            "serial": self.config.serial,
            **stats.as_dict(),
            **stats.histograms(),
            "queues": [queue.counters() for queue in self.device.queue_stats],
        }
