"""A disk in a snapshot: its image's identity, the properties that the guest knows, its layers.

The state of the device (rings, requests) is in the part of its PCI function.

A disk whose writes go straight to its image can go on only with the image as it was at the
snapshot. So the snapshot has the identity of the image. The identity of a read-only image, or
of the image below an overlay, has to be the same, too, because the guest has cached data of it.
"""

import json
import os
import stat
import time
from enum import Enum
from pathlib import Path
from struct import calcsize
from typing import Final

from pykvm.devices.virtio_blk.config_space import FIELDS
from pykvm.devices.virtio_blk.image.file import MAX_SIZE, Image
from pykvm.devices.virtio_blk.layers.frozen import Layers
from pykvm.devices.virtio_blk.layers.overlay import OverlayImage
from pykvm.devices.virtio_blk.open import DiskConfig, OpenDisk
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.errors import UsageError, error_text, reason_of, shown
from pykvm.snapshot.fields import Fields, Saved, SnapshotError

_MOST: Final = (1 << 64) - 1
_IDENTITY: Final = ("device", "inode", "size", "modified_ns", "changed_ns")
_TICK: Final = 0.001
_SECOND: Final = 1_000_000_000
_CLOCK_REALTIME_COARSE: Final = 5  # <linux/time.h>


def config_text(config: DiskConfig) -> str:
    """``config`` as text for :func:`config_of`, without faults and engines of the user's own."""
    values: dict[str, object] = {}
    for name, value in vars(config).items():
        match value:
            case Enum():
                values[name] = value.value
            case RateLimits():
                values[name] = vars(value)
            case Path():
                values[name] = os.path.abspath(value)
            case frozenset():
                values[name] = sorted(value)
            case None | bool() | int() | str() | tuple():
                values[name] = value
    if config.path:
        values["path"] = os.path.abspath(config.path)
    return json.dumps(values)


def config_of(text: str) -> DiskConfig:
    """The configuration in ``text``, which may be anything. SnapshotError."""
    try:
        values = json.loads(text)
        values["limits"] = RateLimits(**values["limits"])
        return DiskConfig(**values)
    except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
        raise SnapshotError(
            f"the snapshot's part disk makes no sense: {shown(str(error), most=200)}",
            "make a new snapshot with this version of pykvm",
        ) from None


def check_can_go_back(disk: OpenDisk) -> None:
    """UsageError if the guest's writes change the image, so that ``disk`` cannot go back."""
    if not disk.image.readonly and not isinstance(disk.image, OverlayImage):
        raise UsageError(
            f"the disk {disk.config.name} cannot go back, because its guest writes to the image",
            "give the disk snapshot=on or readonly=on, or use a blank disk",
        )


def save_disk(disk: OpenDisk) -> Fields:
    """The state of ``disk`` but for its layers, when nothing is in flight. SnapshotError.

    Puts the guest's writes to an image on stable storage.
    """
    image, faults = disk.image, disk.config.faults
    overlay = isinstance(image, OverlayImage)
    if not overlay and not image.readonly:
        _settle(image)
    return {
        "size": image.size,
        "layered": overlay,
        "guest": _guest_view(disk),
        "image": _identity(image),
        "faults": faults.save() if faults is not None else {"rules": [], "count": 0},
    }


def freeze(disk: OpenDisk) -> Layers | None:
    """Freeze the writes of ``disk`` so far. They belong to the caller. SnapshotError.

    Nothing is in flight. None if the disk is no overlay.
    """
    if not isinstance(disk.image, OverlayImage):
        return None
    try:
        with disk.device.image_lock:
            return disk.image.freeze()
    except OSError as error:
        raise _no_layer(disk, error) from None


def prepare_freeze(disk: OpenDisk) -> None:
    """Do what takes long before :func:`freeze`, while the guest runs. SnapshotError."""
    if isinstance(disk.image, OverlayImage):
        try:
            with disk.device.image_lock:
                disk.image.merge_frozen()
        except OSError as error:
            raise _no_layer(disk, error) from None


def check_disk(disk: OpenDisk, saved: Saved) -> None:
    """SnapshotError unless ``disk`` looks like the saved one to its guest, with the same image."""
    _check_guest_view(disk, saved.part("guest"))
    _check_identity(disk, saved.part("image"))


def load_disk(disk: OpenDisk, saved: Saved, layers: Layers | None) -> None:
    """Give ``disk`` the state of :func:`save_disk`, and ``layers``. SnapshotError.

    ``disk`` may be a new one, or any that has nothing in flight. Load its PCI function afterwards.
    """
    with disk.device.image_lock:
        _load(disk, saved, layers)


def _load(disk: OpenDisk, saved: Saved, layers: Layers | None) -> None:
    image = disk.image
    size = saved.integer("size", 1, MAX_SIZE)
    layered = saved.flag("layered")
    _check_guest_view(disk, saved.part("guest"))
    _check_identity(disk, saved.part("image"))
    faults = saved.part("faults")
    saved.end()
    if layered != (layers is not None) or (layers is not None and layers.size != size):
        saved.refuse("its layers are missing, or of another size")
    if layers is not None:
        if not isinstance(image, OverlayImage):
            raise SnapshotError(
                f"the disk {disk.config.name} was saved with writes that are not in the image",
                "give the disk snapshot=on",
            )
        try:
            image.put_back(layers)
        except ValueError as error:
            saved.refuse(str(error))
        except OSError as error:
            raise _no_layer(disk, error) from None
    if image.size != size:
        saved.refuse(f"the disk had {size} bytes, and has {image.size}")
    if disk.config.faults is not None:
        disk.config.faults.restore(faults)


def _guest_view(disk: OpenDisk) -> Fields:
    """The properties that the guest knows and that never change, but for the size."""
    config = bytearray(disk.device.config)
    for name in ("capacity", "writeback"):
        start, form, _ = FIELDS[name]
        width = calcsize(form)
        config[start : start + width] = bytes(width)
    sizes = disk.device.queue_sizes
    return {
        "features": disk.device.features,
        "queues": len(sizes),
        "queue_size": sizes[0],
        "serial": disk.config.serial,
        "config": bytes(config),
    }


def _check_guest_view(disk: OpenDisk, saved: Saved) -> None:
    own = _guest_view(disk)
    same = {
        "features": saved.integer("features", 0, _MOST) == own["features"],
        "queues": saved.integer("queues", 1, 1 << 16) == own["queues"],
        "queue_size": saved.integer("queue_size", 1, 1 << 16) == own["queue_size"],
        "serial": saved.text("serial", 20) == own["serial"],
        "config": saved.data("config", 0, 4096) == own["config"],
    }
    saved.end()
    if not all(same.values()):
        names = ", ".join(name.replace("_", " ") for name, equal in same.items() if not equal)
        raise SnapshotError(
            f"the disk {disk.config.name} has other options than the saved one ({names})",
            "give the disk the options that it was saved with",
        )


def _identity(image: Image) -> Fields:
    """The file or block device whose content the guest may know; zeros for a blank disk."""
    if isinstance(image, OverlayImage):
        if image.base is None:
            return dict.fromkeys(_IDENTITY, 0)
        image = image.base
    status = os.fstat(image.fd)
    if stat.S_ISBLK(status.st_mode):
        # The times are those of the node in /dev: the device may have changed unnoticed.
        numbers = (status.st_rdev, 0, image.size, 0, 0)
    else:
        times = status.st_mtime_ns, status.st_ctime_ns
        numbers = (status.st_dev, status.st_ino, status.st_size, *times)
    return dict(zip(_IDENTITY, numbers, strict=True))


def _check_identity(disk: OpenDisk, saved: Saved) -> None:
    identity = {name: saved.integer(name, -_MOST, _MOST) for name in _IDENTITY}
    saved.end()
    own = _identity(disk.image)
    if identity == own:
        return
    hint = "restore with the image as it was, or make a new snapshot"
    if any(identity[name] != own[name] for name in ("device", "inode")):
        raise SnapshotError(f"the disk {disk.config.name} is not the one that was saved", hint)
    raise SnapshotError(
        f"the disk image {disk.config.name} has changed since the snapshot was taken", hint
    )


def _settle(image: Image) -> None:
    """Put all writes to ``image`` on stable storage, and have later ones change its times."""
    if stat.S_ISBLK(os.fstat(image.fd).st_mode):
        raise SnapshotError(
            f"the block device {image.path} cannot be saved, because nobody would notice if it "
            "changed since",
            "give the disk snapshot=on or readonly=on",
        )
    if failed := image.sync():
        raise SnapshotError(f"the disk image {image.path} cannot be synced: {error_text(failed)}")
    # A write within the clock's present tick would leave the times as they are. Whole seconds are
    # those of a filesystem that keeps no smaller units, such as FAT with its two seconds.
    status = os.fstat(image.fd)
    latest = max(status.st_mtime_ns, status.st_ctime_ns)
    if not status.st_mtime_ns % _SECOND and not status.st_ctime_ns % _SECOND:
        latest += 2 * _SECOND
    now = time.clock_gettime_ns
    if latest > now(time.CLOCK_REALTIME) + 2 * _SECOND:
        return  # a time in the future, which any write replaces
    while now(_CLOCK_REALTIME_COARSE) <= latest:
        time.sleep(_TICK)


def _no_layer(disk: OpenDisk, error: OSError) -> SnapshotError:
    return SnapshotError(
        f"the disk {disk.config.name} cannot get a new layer: {reason_of(error)}",
        "make room in the folder of temporary files, or set TMPDIR",
    )
