"""The driver's requests: it sends them in batches, waits for answers, and checks each one."""

import threading
from collections import Counter
from random import Random

from pykvm.devices.virtio_blk import VirtioBlk
from pykvm.devices.virtio_blk.config_space import FIELDS
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_BLK_SIZE,
)
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.ring_driver import RingDriver
from pykvm.virtio.constants import VIRTIO_F_IN_ORDER, VIRTIO_F_INDIRECT_DESC
from soak.ask import Asker
from soak.judge import Judge, Sent, is_flush
from soak.layout import lay_out
from soak.memory import Slots
from soak.model import SECTOR, Model
from soak.syncs import Syncs

LOW_HEAP = 4096
"""With fewer free bytes in a queue's heap, the driver waits until the heap can be emptied."""


class Stalled(AssertionError):
    """Requests are in flight, and no answer comes any more."""


class Requests:
    """Owns the queues and their memory. One thread at a time, which holds ``guest``.

    While it waits it does not hold ``guest``, because a halted vCPU can be stopped.
    ``flying`` has the requests in flight of each queue, by their heads, the oldest
    first. ``answered``, ``lost`` and ``batches`` are numbers; ``seen`` counts other
    events.
    """

    def __init__(
        self,
        transport: FakeTransport,
        device: VirtioBlk,
        model: Model,
        judge: Judge,
        slots: Slots,
        syncs: Syncs,
        dice: Random,
        guest: threading.RLock,
        patience: float,
        readonly: bool = False,
    ) -> None:
        self.flying: list[dict[int, Sent]] = [{} for _ in transport.drivers]
        self.answered = 0
        self.lost = 0
        self.batches = 0
        self.seen: Counter[str] = Counter()
        self._transport = transport
        self._device = device
        self._model = model
        self._judge = judge
        self._slots = slots
        self._syncs = syncs
        self._dice = dice
        self._guest = guest
        self._patience = patience
        self._readonly = readonly
        self._largest = transport.drivers[0].size
        self._resting: set[int] = set()
        self._asker = self._new_asker()

    @property
    def idle(self) -> bool:
        """True if no request is in flight."""
        return not any(self.flying)

    def start(self) -> None:
        """Begin with the features of the transport."""
        self._syncs.cache(True)
        self._transport.start()
        self._syncs.cache(self._device.writeback)
        self._asker = self._new_asker()

    # -- requests --------------------------------------------------------------

    def send(self) -> None:
        """Send one batch, or several in different queues."""
        for _ in range(self._dice.choice((1, 1, 2, 3))):
            queue = self._queue()
            if queue not in self._resting:
                self._send(queue)

    def _send(self, queue: int) -> None:
        driver = self._transport.drivers[queue]
        if not self.flying[queue]:
            driver.empty_heap()
        self.batches += 1
        for place in range(self._dice.choice((1, 2, 2, 3, 4, 8, 16, 40))):
            if driver.room < LOW_HEAP or not self._add(queue, driver, place):
                break
        if self._dice.random() < 0.2:
            driver.disable_interrupts()
        self._transport.submit(queue)
        if self._dice.random() < 0.05:
            self._transport.notify(queue)

    def _add(self, queue: int, driver: RingDriver, place: int) -> bool:
        """Add the request at ``place`` of its batch; False if there is no room."""
        ask = self._asker.ask(self._model.capacity)
        tables = self._transport.features & VIRTIO_F_INDIRECT_DESC
        laid = lay_out(ask, self._slots, self._dice, 64 if tables else driver.size)
        if laid is None:
            return False
        slot, chain, lent = laid
        flat = self._dice.random() < 0.1 and len(chain) <= driver.size
        try:
            head = driver.add(chain, indirect=False if flat else None)
        except IndexError:
            self._slots.give(slot)
            return False
        changes = ask.changes if ask.refused is None else ()
        access = self._model.issue(self.batches, place, changes)
        self.flying[queue][head] = Sent(ask, queue, access, slot, lent)
        return True

    def collect(self) -> int:
        """Check all answers that have arrived; return their number."""
        before = self.answered
        for queue in range(len(self.flying)):
            for head, used in self._transport.collect(queue):
                del self._transport.done[queue, head]
                self._answer(queue, head, used)
        return self.answered - before

    def _answer(self, queue: int, head: int, used: int) -> None:
        flying = self.flying[queue]
        sent = flying.pop(head)
        try:
            if self._transport.features & VIRTIO_F_IN_ORDER:
                first = next(iter(flying.values()), None)
                early = first is not None and first.access.issued < sent.access.issued
                assert not early, f"it was used before ({first})"
            if is_flush(sent):
                self._covers(sent)
            self._judge.answer(sent, used)
        except AssertionError as error:
            raise AssertionError(f"{sent}: {error}") from error
        self._slots.give(sent.slot)
        self.answered += 1
        self.seen[f"type {sent.ask.kind}" if sent.ask.refused is None else "refused"] += 1

    def _covers(self, flush: Sent) -> None:
        for sent in self.flying[flush.queue].values():
            if sent.access.issued > flush.access.issued:
                return
            writes = bool(sent.ask.changes) and sent.ask.refused is None
            assert not writes, f"a flush was answered before a write in front of it ({sent})"

    def wait(self) -> None:
        """Sleep until there is an answer, and check all that have arrived. Stalled."""
        with self._guest:
            if self.idle or self.collect():
                return
            armed = self._transport.arm()
        if armed >= 0 and not self._transport.sleep(armed, self._patience):
            raise Stalled(f"no request was answered for {self._patience:g} s")
        with self._guest:
            self.collect()

    def settle(self) -> None:
        """Wait until no request is in flight."""
        while not self.idle:
            self.wait()
        with self._guest:
            for driver in self._transport.drivers:
                driver.empty_heap()
            self._slots.check()

    def _queue(self) -> int:
        """A random queue of those that exist with these features."""
        return self._dice.randrange(self._device.queue_count(self._transport.features))

    def _new_asker(self) -> Asker:
        features = self._transport.features
        block = 1
        if features & VIRTIO_BLK_F_BLK_SIZE:
            at = FIELDS["blk_size"][0]
            block = int.from_bytes(self._device.config[at : at + 4], "little") // SECTOR
        return Asker(self._dice, features, block, self._readonly)
