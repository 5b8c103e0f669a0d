"""A virtio block device (virtio 1.2 §5.2).

Its rooms, from top to bottom; imports go down only, and ``core`` is pure:

============  ===================================================================
``device``    features, activation, reset: the VirtioDevice
``serving``   queues, and the threads that serve them
``observe``   what a disk counts, and what it tells a trace
``layers``    engines that wrap engines: faults on purpose, writes kept apart
``engines``   operations → system calls: the contract, and three ways to meet it
``image``     the file: opening, size, limits, locks, sync
``core``      descriptor chain → request → operation, and which may start when
============  ===================================================================

Beside them are what a user can choose (``options``, ``rates``), what the driver is offered
(``features``, ``config_space``) and the specification's numbers (``constants``).
"""

from typing import TYPE_CHECKING

from pykvm.devices.virtio_blk.options import (
    CacheMode,
    DetectZeroes,
    DiscardMode,
    DiskOptions,
    EngineKind,
    ErrorAction,
    ErrorPolicy,
    ImageFormat,
    IoError,
    Locking,
    MergePolicy,
)
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.lean.lazy import lazy_names

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.device import VirtioBlk
    from pykvm.devices.virtio_blk.engines.base import Engine, EngineFactory, SyncEngine
    from pykvm.devices.virtio_blk.engines.choice import EngineChoice, choose
    from pykvm.devices.virtio_blk.image.file import Image
    from pykvm.devices.virtio_blk.observe.stats import Stats

__all__ = [
    "CacheMode",
    "DetectZeroes",
    "DiscardMode",
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
    "RateLimits",
    "Stats",
    "SyncEngine",
    "VirtioBlk",
    "choose",
]

if not TYPE_CHECKING:
    # A machine without disks does not need them.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            f"{__name__}.device": "VirtioBlk",
            f"{__name__}.engines.base": "Engine EngineFactory SyncEngine",
            f"{__name__}.engines.choice": "EngineChoice choose",
            f"{__name__}.image.file": "Image",
            f"{__name__}.observe.stats": "Stats",
        },
    )
