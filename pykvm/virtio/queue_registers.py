"""The registers of one virtqueue, and the queue that they describe. Pure."""

from collections.abc import Callable

from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.constants import VIRTIO_F_RING_PACKED
from pykvm.virtio.geometry import packed_ring_error, ring_error
from pykvm.virtio.packed import PackedQueue
from pykvm.virtio.queue import Virtqueue
from pykvm.virtio.split import SplitQueue

_SAVED = ("size", "enabled", "served", "was_reset", "desc", "avail", "used")
_MOST_ADDRESS = (1 << 64) - 1


class QueueRegisters:
    """The driver's settings for one queue. Addresses are guest-physical and unchecked.

    ``served``: the device serves the queue. ``was_reset``: the device served it
    before a reset of the queue, and may serve it again.
    """

    __slots__ = ("avail", "desc", "enabled", "max_size", "served", "size", "used", "was_reset")

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.clear()

    def clear(self) -> None:
        """Return to the state after a reset of the device."""
        self.size = self.max_size
        self.enabled = self.served = self.was_reset = False
        self.desc = self.avail = self.used = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QueueRegisters):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment] # they change

    def save(self) -> Fields:
        """The settings."""
        return {name: getattr(self, name) for name in _SAVED}

    def load(self, saved: Saved) -> None:
        """Take over what :meth:`save` gave. SnapshotError."""
        self.size = saved.integer("size", 1, self.max_size)
        self.enabled = saved.flag("enabled")
        self.served = saved.flag("served")
        self.was_reset = saved.flag("was_reset")
        for name in ("desc", "avail", "used"):
            setattr(self, name, saved.integer(name, 0, _MOST_ADDRESS))
        saved.end()
        if self.served and not self.enabled:
            saved.refuse("the queue is served and not enabled")

    def allows_size(self, size: int, features: int) -> bool:
        """True if ``size`` is possible with ``features``: split queues need a power of 2 (§2.7)."""
        power_of_2 = not size & (size - 1)
        return 0 < size <= self.max_size and bool(features & VIRTIO_F_RING_PACKED or power_of_2)

    def ring_error(self, ram: Ram, features: int) -> str:
        """Why there can be no ring at these addresses, or "" if there can."""
        check = packed_ring_error if features & VIRTIO_F_RING_PACKED else ring_error
        return check(ram, self.size, self.desc, self.avail, self.used)

    def make_queue(
        self, ram: Ram, index: int, features: int, fence: Callable[[], None]
    ) -> Virtqueue:
        """Queue ``index`` at the start of its rings. ValueError if :meth:`ring_error` has one."""
        kind = PackedQueue if features & VIRTIO_F_RING_PACKED else SplitQueue
        return kind(ram, index, self.size, self.desc, self.avail, self.used, features, fence)
