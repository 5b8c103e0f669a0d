"""The test drivers and the fake transport, on which device tests rely."""

import os
import select
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from pykvm.memory.ram import Ram, Region
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.split_driver import Buffer, SplitDriver
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
)
from pykvm.virtio.device import Activation
from pykvm.virtio.queue import Virtqueue


class Echo:
    """A device of two queues: answers each chain with its readable bytes in upper case."""

    device_id = 2
    features = VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    queue_sizes: tuple[int, ...] = (8, 8)
    config = b""

    def __init__(self) -> None:
        self.threads: list[Thread] = []
        self.stop = os.eventfd(0)
        self.activations = 0

    def write_config(self, offset: int, size: int, value: int) -> None:
        pass

    def negotiated(self, features: int) -> bool:
        return bool(features & VIRTIO_F_VERSION_1)

    def queue_count(self, features: int) -> int:
        return len(self.queue_sizes)

    def hold(self) -> None:
        raise NotImplementedError

    release = hold

    def activate(self, activation: Activation) -> None:
        self.activations += 1
        for index, queue in enumerate(activation.queues):
            if queue is not None:
                thread = Thread(target=self.serve, args=(activation, queue, index))
                thread.start()
                self.threads.append(thread)

    def serve(self, activation: Activation, queue: Virtqueue, index: int) -> None:
        while True:
            more = True
            while more and not queue.error:
                queue.disable_notifications()
                queue.begin_drain()
                while (head := queue.pop()) >= 0:
                    queue.push(head, self.answer(activation.ram, queue, head))
                if queue.publish():
                    activation.interrupt(index)
                more = queue.enable_notifications()
            if queue.error:
                activation.broken(queue.error)
                return
            ready, _, _ = select.select([activation.kicks[index], self.stop], [], [])
            if self.stop in ready:
                return
            os.eventfd_read(activation.kicks[index])

    def answer(self, ram: Ram, queue: Virtqueue, head: int) -> int:
        chain = queue.chains[head]
        at, length = chain.offsets[0], chain.lengths[0]
        text = bytes(ram.bytes[at : at + length]).upper()[: chain.lengths[1]]
        ram.bytes[chain.offsets[1] : chain.offsets[1] + len(text)] = text
        return len(text)

    def reset(self) -> None:
        os.eventfd_write(self.stop, 1)
        for thread in self.threads:
            thread.join()
        self.threads.clear()
        os.eventfd_read(self.stop)

    def close(self) -> None:
        self.reset()
        os.close(self.stop)


@pytest.fixture
def echo(packed: bool) -> Iterator[Echo]:
    device = Echo()
    if packed:
        device.features |= VIRTIO_F_RING_PACKED
    yield device
    device.close()


def test_requests_travel_through_threads_eventfds_and_interrupts(echo: Echo) -> None:
    with FakeTransport(echo) as transport:
        transport.start()
        for queue in (0, 1):
            driver = transport.drivers[queue]
            for lap in range(50):
                head = driver.send([b"lap %d" % lap], [16])
                length = transport.wait(head, queue)
                assert driver.response(head) == (b"LAP %d" % lap).ljust(16, b"\xaa")
                assert length == len(b"lap %d" % lap)
        assert set(transport.interrupts) == {0, 1}
        assert not transport.broken


def test_requests_in_the_queue_at_activation_need_no_kick(echo: Echo) -> None:
    with FakeTransport(echo) as transport:
        driver = transport.drivers[0]
        heads = [driver.send([b"early"], [8]) for _ in range(3)]
        driver.publish()
        transport.start()
        assert [transport.wait(head) for head in heads] == [5, 5, 5]


def test_a_broken_ring_is_reported_and_reset_starts_anew(echo: Echo) -> None:
    with FakeTransport(echo, queue_size=4) as transport:
        transport.start()
        transport.drivers[0].spoil()
        transport.submit()
        assert "queue 0" in transport.wait_broken()
        transport.reset()
        assert transport.drivers[0].size == 4
        transport.start()
        head = transport.drivers[0].send([b"again"], [8])
        assert transport.wait(head) == 5
        assert echo.activations == 2


def test_a_lost_interrupt_is_a_timeout(echo: Echo) -> None:
    echo.queue_sizes = (8,)
    with FakeTransport(echo) as transport:
        head = transport.drivers[0].send([b"x"], [1])
        with pytest.raises(TimeoutError):
            transport.wait(head, timeout=0.02)


def test_queues_can_be_left_disabled_and_features_declined(echo: Echo) -> None:
    with FakeTransport(echo, features=VIRTIO_F_VERSION_1, disabled=[0]) as transport:
        transport.start()
        assert len(echo.threads) == 1
        head = transport.drivers[1].send([b"x"], [4])
        assert transport.wait(head, queue=1) == 1
    with pytest.raises(AssertionError):
        FakeTransport(echo, features=1 << 50)


# -- the driver alone --------------------------------------------------------------


Kind = type[SplitDriver | PackedDriver]
kinds = pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])


@kinds
def test_a_direct_chain_takes_a_descriptor_per_buffer_and_an_indirect_one_takes_one(
    kind: Kind,
) -> None:
    driver = kind(Ram.flat(1 << 16), size=4, features=VIRTIO_F_INDIRECT_DESC)
    for _ in range(4):
        driver.send([b"a", b"b"], [1, 2])
    with pytest.raises(IndexError):
        driver.send([b"a"], [])
    direct = kind(Ram.flat(1 << 16), size=4)
    direct.send([b"a", b"b"], [1])
    with pytest.raises(IndexError):
        direct.send([b"a"], [1])
    direct.send([b"a"], [])


@kinds
def test_descriptors_and_heap_come_back_after_use(kind: Kind) -> None:
    driver = kind(Ram.flat(1 << 16), size=4, heap=4096)
    queue = driver.device_queue()
    for _ in range(50):
        head = driver.send([b"x" * 1000], [1000, 1])
        driver.publish()
        queue.begin_drain()
        queue.push(queue.pop(), 0)
        queue.publish()
        assert driver.collect() == [(head, 0)]
        assert driver.response(head) == b"\xaa" * 1001
    with pytest.raises(MemoryError):
        driver.send([b"x" * 5000], [])


@kinds
def test_two_drivers_share_ram_without_overlap(kind: Kind) -> None:
    ram = Ram.flat(1 << 16)
    first = kind(ram, size=8, base=0, heap=512)
    second = kind(ram, size=8, base=-(-first.end // 16) * 16)
    assert first.end <= second.desc < second.avail < second.used < second.end <= 1 << 16


@kinds
@pytest.mark.parametrize("base", [8, 0xFFF0, 1 << 20])
def test_rings_that_do_not_fit_are_refused(base: int, kind: Kind) -> None:
    with pytest.raises(ValueError, match="no room"):
        kind(Ram.flat(1 << 16), size=16, base=base)


def test_rings_can_lie_in_any_region() -> None:
    regions = [Region(0, 4096, 0), Region(1 << 32, 8192, 4096)]
    driver = SplitDriver(Ram(bytearray(12288), regions), base=1 << 32)
    queue = driver.device_queue()
    driver.send([b"high"], [])
    driver.publish()
    assert queue.begin_drain() == 1
    chain = queue.chains[queue.pop()]
    assert driver.ram.bytes[chain.offsets[0]] == ord("h")


def test_a_device_that_invents_used_descriptors_is_caught() -> None:
    driver = PackedDriver(Ram.flat(1 << 16))
    driver.write_descriptor(0, 0, 0, 3, 0x8080)
    with pytest.raises(AssertionError):
        driver.collect()


def test_a_device_that_invents_completions_is_caught() -> None:
    driver = SplitDriver(Ram.flat(1 << 16))
    driver.ram.write(driver.used + 2, b"\x01\x00")
    with pytest.raises(AssertionError):
        driver.collect()


def fresh_flags(driver: SplitDriver) -> None:
    driver.ram.write(driver.used, b"\x01\x00")


def fresh_event(driver: SplitDriver) -> None:
    driver.ram.write(driver.used + 4 + 8 * driver.size, b"\x05\x00")


@pytest.mark.parametrize(("features", "quiet"), [(0, fresh_flags), (1 << 29, fresh_event)])
def test_publish_tells_if_the_device_wants_a_notification(
    features: int, quiet: Callable[[SplitDriver], None]
) -> None:
    driver = SplitDriver(Ram.flat(1 << 16), features=features)
    assert not driver.publish()
    driver.add([Buffer(0x8000, 1, False)])
    assert driver.publish()
    quiet(driver)
    driver.add([Buffer(0x8000, 1, False)])
    assert not driver.publish()
