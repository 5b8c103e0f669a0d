"""Both kinds of queue against a reference model, and against garbage.

Invariants. Honest driver: every chain arrives once, as it was sent and in that
order; every completion arrives once, with IN_ORDER in the order of the chains;
and nobody sleeps while something waits for him, with
the other side acting inside each fence, where real hardware would let it.
Hostile driver: no exception, bounded work, no byte outside guest RAM.
"""

from collections import deque

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.memory.ram import Ram, Region
from pykvm.snapshot.fields import Saved
from pykvm.testing.packed_driver import PackedDriver
from pykvm.testing.ring_driver import Buffer, RingDriver
from pykvm.testing.split_driver import SplitDriver
from pykvm.virtio.chain import CHAIN_OK
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
)
from pykvm.virtio.packed import WRAP, PackedQueue
from pykvm.virtio.queue import Virtqueue
from pykvm.virtio.split import SplitQueue

FEATURES = st.sampled_from([0, VIRTIO_F_INDIRECT_DESC]).flatmap(
    lambda indirect: st.sampled_from([indirect, indirect | VIRTIO_F_EVENT_IDX])
)
IN_ORDER = st.sampled_from([0, VIRTIO_F_IN_ORDER])


class World:
    """A driver and a device that take turns, sleep, and wake each other up."""

    def __init__(
        self, data: st.DataObject, kind: type[SplitDriver | PackedDriver], **arguments: int
    ) -> None:
        self.data = data
        self.inside = ""
        """Whose turn it is, "" where fences are plain."""
        self.driver = kind(Ram.flat(1 << 16), fence=self.fence, **arguments)
        self.queue: Virtqueue = self.driver.device_queue(fence=self.fence)
        self.sent: dict[int, list[Buffer]] = {}
        """The driver's heads in flight, in the order of sending."""
        self.unseen: deque[int] = deque()
        """The driver's heads that the device has not popped."""
        self.popped: list[tuple[int, int]] = []
        """(the device's head, the driver's head) of each chain that the device works on."""
        self.pushed: dict[int, int] = {}
        self.kicked = True  # a device looks at its rings when it starts
        self.interrupted = False
        self.device_sleeps = False
        self.driver_sleeps = False

    # Who acts inside whose fence: the fence of one side lets the other side run.

    def fence(self) -> None:
        who, self.inside = self.inside, ""
        if who and self.data.draw(st.booleans(), label=f"inside the {who}'s fence"):
            (self.driver_acts if who == "device" else self.device_acts)(nested=True)
        self.inside = who

    def run(self, side: str, nested: bool) -> None:
        """Enter ``side``'s code; fences inside a nested turn are plain."""
        self.inside = "" if nested else side

    def driver_acts(self, nested: bool = False) -> None:
        self.run("driver", nested)
        if self.driver_sleeps and not self.interrupted:
            # Asleep means waiting for completions; more requests may still come in.
            self.driver_sends()
            return
        self.interrupted = self.driver_sleeps = False
        self.driver.disable_interrupts()
        for head, length in self.driver.collect():
            assert self.pushed.pop(head) == length
            if self.driver.features & VIRTIO_F_IN_ORDER:
                assert head == next(iter(self.sent))
            del self.sent[head]
        self.driver_sends()
        self.driver_sleeps = not self.driver.enable_interrupts()

    def driver_sends(self) -> None:
        for _ in range(self.data.draw(st.integers(0, 3), label="sends")):
            lengths = self.data.draw(
                st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=4)
            )
            chain = [
                Buffer(0x8000 + 128 * i, length, writable)
                for i, (length, writable) in enumerate(sorted(lengths, key=lambda e: e[1]))
            ]
            try:
                head = self.driver.add(chain, indirect=self.draw_indirect())
            except (IndexError, MemoryError):
                break
            assert head not in self.sent
            self.sent[head] = chain
            self.unseen.append(head)
        if self.driver.publish():
            self.kicked = True

    def draw_indirect(self) -> bool:
        if not self.driver.features & VIRTIO_F_INDIRECT_DESC:
            return False
        return bool(self.data.draw(st.booleans(), label="indirect"))

    def device_acts(self, nested: bool = False) -> None:
        self.run("device", nested)
        if self.device_sleeps and not self.kicked:
            self.device_completes()
            return
        self.kicked = self.device_sleeps = False
        self.queue.disable_notifications()
        assert 0 <= self.queue.begin_drain() <= self.driver.size
        while (head := self.queue.pop()) >= 0:
            self.popped.append((head, self.unseen.popleft()))
            self.check(*self.popped[-1])
        assert self.queue.error == ""
        self.device_completes()
        self.device_sleeps = not self.queue.enable_notifications()

    def device_completes(self) -> None:
        while len(self.popped) > 0 and self.data.draw(st.booleans(), label="complete one"):
            index = self.data.draw(st.integers(0, len(self.popped) - 1), label="which")
            head, theirs = self.popped.pop(index)
            self.pushed[theirs] = self.data.draw(st.integers(0, 2**32 - 1), label="length")
            self.queue.push(head, self.pushed[theirs])
        if self.queue.publish():
            self.interrupted = True

    def check(self, head: int, theirs: int) -> None:
        chain = self.queue.chains[head]
        sent = self.sent[theirs]
        count = len(sent)
        assert chain.error == CHAIN_OK
        assert chain.readable == sum(not b.writable for b in sent)
        assert chain.readable + chain.writable == count
        assert list(chain.offsets[:count]) == [b.address for b in sent]
        assert list(chain.lengths[:count]) == [b.length for b in sent]
        assert chain.readable_bytes == sum(b.length for b in sent if not b.writable)
        assert chain.writable_bytes == sum(b.length for b in sent if b.writable)

    def moves(self) -> None:
        """The device goes on after a snapshot. It sleeps no more, and the driver hears of it."""
        old = self.queue
        args = (self.driver.ram, 0, self.driver.size)
        places = (self.driver.desc, self.driver.avail, self.driver.used)
        self.queue = type(old)(*args, *places, self.driver.features, self.fence)
        self.queue.load(Saved("queue", old.save()))
        assert self.queue.waiting() == {head for head, _ in self.popped}
        self.kicked = self.interrupted = True

    def nobody_overslept(self) -> None:
        if self.device_sleeps and not self.kicked:
            assert not self.unseen, "a lost notification"
        if self.driver_sleeps and not self.interrupted:
            early = self.driver.features & VIRTIO_F_IN_ORDER and self.popped
            assert early or not self.pushed, "a lost interrupt"


def run(world: World) -> None:
    for _ in range(world.data.draw(st.integers(1, 12), label="turns")):
        if world.data.draw(st.booleans(), label="driver's turn"):
            world.driver_acts()
        else:
            world.device_acts()
        if world.data.draw(st.integers(0, 3), label="a snapshot if 3") == 3:
            world.moves()
        world.nobody_overslept()


@settings(max_examples=examples(100), deadline=None)
@given(
    data=st.data(),
    size=st.sampled_from([1, 2, 4, 16]),
    features=FEATURES,
    in_order=IN_ORDER,
    start=st.sampled_from([0, 65533, 32766]),
)
def test_every_request_arrives_once_and_no_side_oversleeps(
    data: st.DataObject, size: int, features: int, in_order: int, start: int
) -> None:
    run(World(data, SplitDriver, size=size, features=features | in_order, start=start))


@settings(max_examples=examples(100), deadline=None)
@given(
    data=st.data(),
    size=st.sampled_from([1, 2, 3, 4, 7, 16]),
    features=FEATURES,
    in_order=IN_ORDER,
    last=st.booleans(),
    wrap=st.sampled_from([0, WRAP]),
)
def test_every_request_of_a_packed_queue_arrives_once(
    data: st.DataObject, size: int, features: int, in_order: int, last: bool, wrap: int
) -> None:
    start = wrap | (size - 1 if last else 0)
    world = World(data, PackedDriver, size=size, features=features | in_order, start=start)
    assert isinstance(world.driver, PackedDriver)
    # The driver's numbers are its own business.
    world.driver.ids = [0xFFFF - 1000 * i for i in range(size)]
    run(world)


@pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
def test_the_indices_wrap_many_times(kind: type[SplitDriver | PackedDriver]) -> None:
    driver: RingDriver = kind(Ram.flat(1 << 16), size=4, features=VIRTIO_F_EVENT_IDX)
    queue = driver.device_queue()
    for lap in range(70_000 // 4):
        heads = [driver.add([Buffer(0x8000, 16, False)]) for _ in range(4)]
        assert driver.publish(), lap
        assert queue.begin_drain() == 4
        for _ in heads:
            queue.push(queue.pop(), lap)
        assert queue.publish(), lap
        assert not queue.enable_notifications()
        assert driver.collect() == [(head, lap) for head in heads]
        assert not driver.enable_interrupts()
    assert queue.save()["last_avail"] == 70_000 % 65536 if kind is SplitDriver else WRAP


# -- a hostile driver -----------------------------------------------------------

GUARD, RAM_SIZE, SIZE = 256, 8192, 8
ADDRESS = st.one_of(
    st.integers(0, RAM_SIZE + 64),
    st.sampled_from([0, RAM_SIZE - 1, RAM_SIZE, 2**32, 2**63, 2**64 - 1, 2**64 - 16]),
)
LENGTH = st.one_of(
    st.sampled_from([0, 1, 16, 32, 48, 512, 16 * 1026, 2**31, 2**32 - 1]), st.integers(0, 600)
)
DESCRIPTOR = st.tuples(ADDRESS, LENGTH, st.integers(0, 15), st.integers(0, SIZE + 1))
WRITES = st.lists(st.tuples(st.integers(0, 3 * SIZE), DESCRIPTOR), max_size=12)


def scribble(ram: Ram, writes: list[tuple[int, tuple[int, int, int, int]]]) -> None:
    for index, (address, length, flags, following) in writes:
        packed = address.to_bytes(8, "little") + length.to_bytes(4, "little")
        packed += flags.to_bytes(2, "little") + following.to_bytes(2, "little")
        ram.write(16 * index, packed)


@settings(max_examples=examples(120), deadline=None)
@given(
    data=st.data(),
    features=FEATURES,
    noise=st.binary(min_size=RAM_SIZE // 16, max_size=RAM_SIZE // 16),
)
def test_garbage_in_the_rings_is_survived(data: st.DataObject, features: int, noise: bytes) -> None:
    buffer = bytearray(b"\x5a" * GUARD + noise * 16 + b"\x5a" * GUARD)
    ram = Ram(buffer, [Region(0, RAM_SIZE, GUARD)])
    # Tables and rings near each other, so that they overlap and garble one another.
    avail, used = 16 * SIZE + 16 * data.draw(st.integers(0, 8)), 0x200
    queue = SplitQueue(ram, 0, SIZE, 0, avail, used, features)
    popped: list[int] = []
    for _ in range(data.draw(st.integers(1, 6), label="drains")):
        scribble(ram, data.draw(WRITES, label="descriptors"))
        for slot in range(SIZE):
            ram.u16[(GUARD + avail) // 2 + 2 + slot] = data.draw(st.integers(0, SIZE))
        step = data.draw(st.integers(0, SIZE + 1), label="avail.idx step")
        ram.u16[(GUARD + avail) // 2 + 1] = (queue.last_avail + step) & 0xFFFF
        taken = 0
        queue.begin_drain()
        while (head := queue.pop()) >= 0:
            taken += 1
            popped.append(head)
            verify(queue, head)
            scribble(ram, data.draw(WRITES, label="meanwhile"))
        assert taken <= SIZE
        assert len(popped) == len(set(popped)) == queue.in_flight
        for head in popped:
            queue.push(head, 2**32)
        popped.clear()
        queue.publish()
        queue.enable_notifications()
    assert buffer[:GUARD] == buffer[-GUARD:] == b"\x5a" * GUARD


SLOT = st.tuples(ADDRESS, LENGTH, st.integers(0, 15), st.sampled_from([0, 0x80, 0x8000, 0x8080]))


@settings(max_examples=examples(120), deadline=None)
@given(
    data=st.data(),
    features=FEATURES,
    noise=st.binary(min_size=RAM_SIZE // 16, max_size=RAM_SIZE // 16),
)
def test_garbage_in_a_packed_ring_is_survived(
    data: st.DataObject, features: int, noise: bytes
) -> None:
    buffer = bytearray(b"\x5a" * GUARD + noise * 16 + b"\x5a" * GUARD)
    ram = Ram(buffer, [Region(0, RAM_SIZE, GUARD)])
    # Event suppression within the ring, so that they garble one another.
    driver, device = (4 * data.draw(st.integers(0, 40)) for _ in range(2))
    queue = PackedQueue(ram, 0, SIZE, 0, driver, device, features)

    def garble() -> None:
        slots = data.draw(st.lists(st.tuples(st.integers(0, 3 * SIZE), SLOT), max_size=12))
        # Likely enough flags, and any buffer id.
        writes = [(i, (at, n, 257 * low, low | turn)) for i, (at, n, low, turn) in slots]
        scribble_packed(ram, writes)

    popped: list[int] = []
    for _ in range(data.draw(st.integers(1, 6), label="drains")):
        garble()
        taken = 0
        queue.begin_drain()
        while (head := queue.pop()) >= 0:
            taken += 1
            popped.append(head)
            verify(queue, head)
            garble()
        assert taken <= SIZE
        assert len(popped) == len(set(popped)) == queue.in_flight
        while popped and data.draw(st.booleans(), label="done"):
            queue.push(popped.pop(), 2**32)
        queue.publish()
        queue.enable_notifications()
    assert buffer[:GUARD] == buffer[-GUARD:] == b"\x5a" * GUARD


def scribble_packed(ram: Ram, writes: list[tuple[int, tuple[int, int, int, int]]]) -> None:
    for index, (address, length, buffer_id, flags) in writes:
        packed = address.to_bytes(8, "little") + length.to_bytes(4, "little")
        packed += buffer_id.to_bytes(2, "little") + flags.to_bytes(2, "little")
        ram.write(16 * index, packed)


def verify(queue: Virtqueue, head: int) -> None:
    chain = queue.chains[head]
    count = chain.readable + chain.writable
    assert count <= queue.indirect_limit + SIZE
    pairs = list(zip(chain.offsets[:count], chain.lengths[:count], strict=True))
    for offset, length in pairs:
        assert 0 < length < 2**32
        assert offset == -1 or GUARD <= offset <= GUARD + RAM_SIZE - length
    assert sum(length for _, length in pairs) == chain.readable_bytes + chain.writable_bytes
    if chain.error == CHAIN_OK:
        assert chain.readable_bytes + chain.writable_bytes <= 2**32
