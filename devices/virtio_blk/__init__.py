"""A virtio block device (virtio 1.2 §5.2).

==============  =============================================================
module          what it knows
==============  =============================================================
``constants``   the specification's numbers
``config``      the configuration space
``request``     descriptor chain → request: framing, validation (pure)
``plan``        requests of one drain → operations, and their order (pure)
``engine``      operations → system calls
``image``       the file: opening, size, sync
``lock``        QEMU's image locks
``service``     one queue: ring → parser → planner → engine → ring
``io_thread``   the thread that serves queues
``stats``       what a disk counts
``device``      features, activation, reset: the VirtioDevice
==============  =============================================================
"""

from pykvm.devices.virtio_blk.device import VirtioBlk
from pykvm.devices.virtio_blk.engine import Engine, EngineFactory, SyncEngine
from pykvm.devices.virtio_blk.image import Image
from pykvm.devices.virtio_blk.stats import Stats

__all__ = ["Engine", "EngineFactory", "Image", "Stats", "SyncEngine", "VirtioBlk"]
