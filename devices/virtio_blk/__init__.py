"""A virtio block device (virtio 1.2 §5.2).

Its rooms from top to bottom. Imports go down only, and ``core`` is pure:

============  ===================================================================
``open``      options → an open disk, with a machine or without
``device``    features, activation, reset: the VirtioDevice
``serving``   queues, and the threads that serve them
``observe``   the counters of a disk, and its events for a trace
``layers``    engines that wrap engines: faults on purpose, writes kept apart
``engines``   operations → system calls: the contract, and three ways to meet it
``image``     the file: opening, size, limits, locks, sync
``core``      descriptor chain → request → operation, and the order of operations
============  ===================================================================

Below ``device`` are also ``resizing`` and ``write_cache``, two of its subjects.
Beside them are the user's options (``options``, ``modes``, ``rates``), the driver's view
(``features``, ``config_space``), the reports to the owner (``hooks``), and the specification's
numbers (``constants``).
"""

from typing import TYPE_CHECKING

from pykvm.devices.virtio_blk.hooks import DeviceHooks, IoError
from pykvm.devices.virtio_blk.modes import (
    CacheMode,
    DetectZeroes,
    DiscardMode,
    EngineKind,
    ErrorAction,
    ErrorPolicy,
    ImageFormat,
    Locking,
    MergePolicy,
)
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.lean.lazy import lazy_names

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.device import VirtioBlk
    from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory
    from pykvm.devices.virtio_blk.engines.choice import EngineChoice, choose
    from pykvm.devices.virtio_blk.engines.sync import SyncEngine
    from pykvm.devices.virtio_blk.image.file import Image
    from pykvm.devices.virtio_blk.observe.stats import Stats
    from pykvm.devices.virtio_blk.open import DiskConfig, OpenDisk, open_disk

__all__ = [
    "CacheMode",
    "DetectZeroes",
    "DeviceHooks",
    "DiscardMode",
    "DiskConfig",
    "DiskOptions",
    "Engine",
    "EngineChoice",
    "EngineFactory",
    "EngineKind",
    "ErrorAction",
    "ErrorPolicy",
    "Image",
    "ImageFormat",
    "IoError",
    "Locking",
    "MergePolicy",
    "OpenDisk",
    "RateLimits",
    "Stats",
    "SyncEngine",
    "VirtioBlk",
    "choose",
    "open_disk",
]

if not TYPE_CHECKING:
    # A machine without disks does not need them.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            f"{__name__}.device": "VirtioBlk",
            f"{__name__}.engines.base": "Engine EngineFactory",
            f"{__name__}.engines.choice": "EngineChoice choose",
            f"{__name__}.engines.sync": "SyncEngine",
            f"{__name__}.image.file": "Image",
            f"{__name__}.observe.stats": "Stats",
            f"{__name__}.open": "DiskConfig OpenDisk open_disk",
        },
    )
