"""The common behaviour of split and packed queues, device side: chains, notifications, interrupts.

Both against a model: test_ring_model.py. Where they differ: test_ring_split.py,
test_ring_packed.py and their chains.
"""

from collections.abc import Callable

import pytest
from rings import Driver, Queue, packed_ring, pop_one, segments, split_ring

from pykvm.memory.ram import Ram, Region
from pykvm.virtio.chain import CHAIN_OK
from pykvm.virtio.constants import VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC
from pykvm.virtio.packed import WRAP

Maker = Callable[..., tuple[Driver, Queue]]


@pytest.fixture
def make(packed: bool) -> Maker:
    return packed_ring if packed else split_ring


@pytest.mark.parametrize("features", [0, VIRTIO_F_INDIRECT_DESC])
def test_a_chain_is_translated_readable_segments_first(make: Maker, features: int) -> None:
    # RAM at 1 MiB in the second half of a buffer: offsets are not addresses.
    ram = Ram(bytearray(1 << 17), [Region(1 << 20, 1 << 16, 1 << 16)])
    driver, queue = make(features=features, ram=ram, base=1 << 20)
    driver.send([b"head", b"payload"], [512, 1])
    chain = pop_one(driver, queue)
    assert (chain.readable, chain.writable) == (2, 2)
    assert (chain.readable_bytes, chain.writable_bytes) == (11, 513)
    assert list(chain.lengths[:4]) == [4, 7, 512, 1]
    texts = [bytes(ram.bytes[offset : offset + length]) for offset, length in segments(chain)]
    assert texts[:2] == [b"head", b"payload"]
    assert chain.error == CHAIN_OK
    assert chain.head == 0


def test_without_event_idx_flags_decide(make: Maker) -> None:
    driver, queue = make()
    queue.disable_notifications()
    head = driver.send([b"x"], [])
    assert not driver.publish()
    assert queue.enable_notifications()
    queue.begin_drain()
    queue.push(queue.pop(), 0)
    driver.disable_interrupts()
    assert not queue.publish()
    assert not queue.enable_notifications()
    assert driver.collect() == [(head, 0)]
    driver.send([b"x"], [])
    assert driver.publish()
    queue.begin_drain()
    queue.push(queue.pop(), 0)
    driver.enable_interrupts()
    assert queue.publish()


@pytest.mark.parametrize(
    ("make", "size", "start"),
    [(split_ring, 8, 0), *((packed_ring, 4, start) for start in (WRAP, WRAP | 2, 0, 2))],
)
def test_event_idx_suppresses_unwanted_notifications_and_interrupts(
    make: Maker, size: int, start: int
) -> None:
    driver, queue = make(size, VIRTIO_F_EVENT_IDX, start)
    for _ in range(4):
        driver.send([b"x"], [])
    driver.enable_interrupts(after=2)  # at the third that is used
    assert driver.publish()
    queue.begin_drain()
    asked = []
    while (head := queue.pop()) >= 0:
        queue.push(head, 0)
        asked.append(queue.publish())
    assert asked == [False, False, True, False]
    assert not queue.enable_notifications()


@pytest.mark.parametrize("features", [0, VIRTIO_F_EVENT_IDX])
def test_the_fence_lies_between_the_store_and_the_load(make: Maker, features: int) -> None:
    """The other side acts inside the fence, so a read before the fence would miss that."""
    driver, _ = make(features=features)
    acts: list[Callable[[], object]] = []

    def fence() -> None:
        acts.pop()()

    queue = driver.device_queue(fence=fence)
    driver.enable_interrupts(after=5)
    driver.disable_interrupts()
    driver.send([b"x"], [])
    driver.publish()
    queue.begin_drain()
    queue.push(queue.pop(), 0)

    seen: list[bool] = []
    acts.append(lambda: seen.append(driver.enable_interrupts()))
    assert queue.publish()  # the driver's wish is read after the fence
    assert seen == [True]  # and the used heads were written before it

    driver.collect()
    queue.disable_notifications()
    driver.send([b"y"], [])
    acts.append(lambda: seen.append(driver.publish()))
    assert queue.enable_notifications()  # the available heads are read after the fence
    assert seen[-1]  # and the device's wish was written before it
