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

from importlib import import_module
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

_IMPORTED_LATER = {
    "Engine": "engines.base",
    "EngineChoice": "engines.choice",
    "EngineFactory": "engines.base",
    "Image": "image.file",
    "Stats": "observe.stats",
    "SyncEngine": "engines.base",
    "VirtioBlk": "device",
    "choose": "engines.choice",
}
"""What a machine without disks does not need, and where it is."""


def __getattr__(name: str) -> object:
    if name not in _IMPORTED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_IMPORTED_LATER[name]}"), name)
