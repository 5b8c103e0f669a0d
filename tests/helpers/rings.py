"""Both sides of one queue, split or packed, and a simple device for it."""

from pykvm.memory.ram import Ram
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.chain import DescriptorChain
from pykvm.virtio.constants import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
)
from pykvm.virtio.packed import WRAP, PackedQueue
from pykvm.virtio.queue import EMPTY
from pykvm.virtio.split import SplitQueue

NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT
DATA = 0x8000
"""An address in RAM behind the rings."""

Driver = SplitDriver | PackedDriver
Queue = SplitQueue | PackedQueue


def split_ring(
    size: int = 8, features: int = 0, start: int = 0, ram: Ram | None = None, base: int = 0x1000
) -> tuple[SplitDriver, SplitQueue]:
    """The rings are at ``base`` of ``ram``, which is 64 KiB from 0 unless given."""
    driver = SplitDriver(
        ram or Ram.flat(1 << 16), size=size, features=features, base=base, start=start
    )
    return driver, driver.device_queue()


def packed_ring(
    size: int = 8, features: int = 0, start: int = WRAP, ram: Ram | None = None, base: int = 0x1000
) -> tuple[PackedDriver, PackedQueue]:
    """As :func:`split_ring`."""
    driver = PackedDriver(
        ram or Ram.flat(1 << 16), size=size, features=features, base=base, start=start
    )
    return driver, driver.device_queue()


def pop_one(driver: Driver, queue: Queue) -> DescriptorChain:
    """Publish, and pop the one chain that is available."""
    driver.publish()
    most = queue.begin_drain()
    assert most == 1 if isinstance(queue, SplitQueue) else most >= 1
    head = queue.pop()
    assert head >= 0, queue.error
    assert queue.pop() == EMPTY
    return queue.chains[head]


def serve(driver: Driver, queue: Queue, length: int = 0) -> None:
    """Publish, and use all available chains, each with the used ``length``."""
    driver.publish()
    queue.begin_drain()
    while (head := queue.pop()) >= 0:
        queue.push(head, length)
    queue.publish()


def segments(chain: DescriptorChain) -> list[tuple[int, int]]:
    """(offset in RAM, length) of each segment, readable ones first."""
    count = chain.readable + chain.writable
    return list(zip(chain.offsets[:count], chain.lengths[:count], strict=True))
