"""A virtio block device (virtio 1.2 §5.2).

==============  =============================================================
module          what it knows
==============  =============================================================
``constants``   the specification's numbers
``config``      the configuration space
``features``    feature bits, block sizes, and what the space says of them (pure)
``options``     what a user can choose; errors as announced
``request``     descriptor chain → request: framing, validation (pure)
``ranges``      … its ranges, if it is a discard or writes zeroes (pure)
``operation``   what an engine executes (pure)
``merge``       which requests of one drain go together: the merge policies (pure)
``plan``        requests of one drain → operations: merged ones, pieces (pure)
``order``       what must wait for what among operations (pure)
``schedule``    requests until their results: second attempts, stop, resume (pure)
``zeroes``      writes of zeros that need no data (pure)
``engine``      operations → system calls: the contract, and the simplest
``range_io``    … discards and zeroes
``allocation``  what the host can do about a range: free its space, make it zeros
``threads``     an engine of several threads
``io_uring``    an engine on io_uring
``engines``     which of them a disk gets
``direct``      O_DIRECT: what is aligned, and what has to bounce
``faults``      an engine that wraps another one and fails on purpose
``overlay``     an engine whose writes go to a temporary file
``padding``     an engine that reads zeros behind the end of a file
``temporary``   … or to several, where none can be as large as the disk
``sector_map``  which sectors are there (pure)
``fault_rules`` which operations shall fail, and how (pure)
``fault_file``  fault rules from TOML (pure)
``timer``       a timerfd
``image``       the file: opening, size, sync
``formats``     formats that are not raw, by their first bytes (pure)
``host_limits`` what a host asks of one transfer
``lock``        QEMU's image locks
``service``     one queue: ring → parser → planner → engine → ring
``rounds``      several queues, round after round, and watching for more
``io_thread``   the thread that does so
``io_threads``  all of a disk's: halting, going on and ending together
``transfer``    the system call itself, in both forms
``rates``       what a user can limit (pure)
``throttle``    when operations may start under rate limits (pure)
``polling``     how long to watch a ring before sleeping (pure)
``stats``       what a disk counts
``histogram``   … and how long it took (pure)
``trace``       what it tells a trace
``device``      features, activation, reset: the VirtioDevice
==============  =============================================================
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
    from pykvm.devices.virtio_blk.engine import Engine, EngineFactory, SyncEngine
    from pykvm.devices.virtio_blk.engines import EngineChoice, choose
    from pykvm.devices.virtio_blk.image import Image
    from pykvm.devices.virtio_blk.stats import Stats

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
    "Engine": "engine",
    "EngineChoice": "engines",
    "EngineFactory": "engine",
    "Image": "image",
    "Stats": "stats",
    "SyncEngine": "engine",
    "VirtioBlk": "device",
    "choose": "engines",
}
"""What a machine without disks does not need, and where it is."""


def __getattr__(name: str) -> object:
    if name not in _IMPORTED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_IMPORTED_LATER[name]}"), name)
