"""A guest's driver that uses everything that a driver may do."""

from pykvm.devices.virtio_blk.config_space import FIELDS
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_CONFIG_WCE
from pykvm.virtio.constants import VIRTIO_F_RING_RESET
from soak.memory import check_quiet
from soak.requests import Requests, Stalled
from soak.scenario import negotiate


class Driver(Requests):
    """Resets queues and the device, breaks rings, and changes settings between requests."""

    def restart(self) -> None:
        """Reset the device, and start it with a different choice of features."""
        self.collect()
        self._transport.features = negotiate(self._dice, self._device.features)
        self._transport.reset()
        self._transport.broken.clear()
        for queue in range(len(self.flying)):
            self._lose(queue)
        self._resting.clear()
        self.start()
        self.seen["device resets"] += 1

    def spoil(self) -> None:
        """Break a ring. The device has to ask for a reset, and gets it."""
        with self._guest:
            queue = self._queue()
            if self.flying[queue] or queue in self._resting:
                return
            self._transport.drivers[queue].spoil()
            self._transport.submit(queue)
            self._transport.notify(queue)
        try:
            self._transport.wait_broken(self._patience)
        except TimeoutError:
            raise Stalled("a queue was broken, and the device does not report it") from None
        with self._guest:
            self.restart()
            self.seen["broken rings"] += 1

    def renew(self) -> None:
        """Reset a queue, or start a queue that was reset."""
        if not self._transport.features & VIRTIO_F_RING_RESET:
            return
        queue = self._queue()
        if queue not in self._resting:
            self.collect()
            sizes = [size for size in (4, 8, 32, self._largest) if size <= self._largest]
            self._transport.stop_queue(queue, self._dice.choice(sizes))
            self._lose(queue)
            self._resting.add(queue)
            self.seen["queue resets"] += 1
        if self._dice.random() < 0.7:
            self._resting.discard(queue)
            self._transport.start_queue(queue)

    def hold(self) -> None:
        """Take bus mastering from the device for a moment, or during a reset."""
        self._device.hold()
        check_quiet(self._transport)
        if self._dice.random() < 0.2:
            self.restart()
            check_quiet(self._transport)
        self._device.release()
        self.seen["holds"] += 1

    def switch_cache(self) -> None:
        """Switch to write-back or write-through."""
        if self._transport.features & VIRTIO_BLK_F_CONFIG_WCE:
            at = FIELDS["writeback"][0]
            writeback = bool(self._dice.randint(0, 1))
            if writeback:
                self._syncs.cache(True)
            self._device.write_config(at, 1, writeback)
            self._syncs.cache(self._device.writeback)
            self.seen["cache switches"] += 1

    def _lose(self, queue: int) -> None:
        """Count the requests in flight in ``queue`` as lost."""
        for sent in self.flying[queue].values():
            self._judge.lost(sent)
            self._slots.give(sent.slot)
            self.lost += 1
        self.flying[queue].clear()
