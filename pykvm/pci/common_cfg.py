"""The common configuration structure of virtio-pci (virtio 1.2 §4.1.4.3).

This is only a decoder: it gives each field an offset and a width. The rules are in
:class:`~pykvm.virtio.registers.TransportState`. An access that is not exactly one
field, or one half of a 64-bit field, reads 0 and writes nothing.
"""

from collections.abc import Callable
from functools import partial
from struct import pack, unpack

from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.virtio.queue_registers import QueueRegisters
from pykvm.virtio.registers import TransportState

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

COMMON_SIZE = 0x3C
VIRTIO_MSI_NO_VECTOR = 0xFFFF

Get = Callable[[], int]
Set = Callable[[int], None]


class Vectors:
    """The MSI-X vector of each event; VIRTIO_MSI_NO_VECTOR for none (§4.1.5.1.2)."""

    def __init__(self, count: int, queues: int) -> None:
        """``count`` vectors exist."""
        self._count = count
        self.config = VIRTIO_MSI_NO_VECTOR
        self.queues = [VIRTIO_MSI_NO_VECTOR] * queues

    def usable(self, value: int) -> int:
        """``value`` if that vector exists, else VIRTIO_MSI_NO_VECTOR."""
        return value if value < self._count else VIRTIO_MSI_NO_VECTOR

    def save(self) -> "Fields":
        """The vectors."""
        return {"config": self.config, "queues": pack(f"<{len(self.queues)}H", *self.queues)}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave. SnapshotError."""
        self.config = self.usable(saved.integer("config", 0, VIRTIO_MSI_NO_VECTOR))
        count = len(self.queues)
        numbers = unpack(f"<{count}H", saved.data("queues", 2 * count, 2 * count))
        self.queues[:] = [self.usable(number) for number in numbers]
        saved.end()

    def clear(self) -> None:
        """Return to the state after a reset."""
        self.config = VIRTIO_MSI_NO_VECTOR
        self.queues[:] = [VIRTIO_MSI_NO_VECTOR] * len(self.queues)


class CommonConfig:
    """Decodes accesses for ``state`` and ``vectors``. The caller serialises.

    ``was_reset`` is called after the driver's write of 0 to the status.
    """

    def __init__(
        self, state: TransportState, vectors: Vectors, was_reset: Callable[[], None]
    ) -> None:
        self._state = state
        self._vectors = vectors
        self._was_reset = was_reset
        attribute = partial(partial, getattr, state)
        read_only: Set = _ignore
        self._fields: dict[tuple[int, int], tuple[Get, Set]] = {
            (0x00, 4): (attribute("device_feature_select"), self._set_device_feature_select),
            (0x04, 4): (attribute("device_feature"), read_only),
            (0x08, 4): (attribute("driver_feature_select"), self._set_driver_feature_select),
            (0x0C, 4): (attribute("driver_feature"), state.write_driver_feature),
            (0x10, 2): (lambda: vectors.config, self._set_config_vector),
            (0x12, 2): (lambda: len(state.queues), read_only),
            (0x14, 1): (attribute("status"), self._set_status),
            (0x15, 1): (lambda: state.config.generation, read_only),
            (0x16, 2): (attribute("queue_select"), self._set_queue_select),
            (0x18, 2): (self._queue_size, state.write_queue_size),
            (0x1A, 2): (self._queue_vector, self._set_queue_vector),
            (0x1C, 2): (self._queue_enable, state.write_queue_enable),
            (0x1E, 2): (self._queue_notify_off, read_only),
            # queue_notify_data belongs to a feature that is not offered. queue_reset reads 0,
            # because the reset is over when the driver's write returns.
            (0x38, 2): (_zero, read_only),
            (0x3A, 2): (_zero, self._set_queue_reset),
        }
        for offset, name in ((0x20, "desc"), (0x28, "avail"), (0x30, "used")):
            for at, size, shift in ((0, 8, 0), (0, 4, 0), (4, 4, 32)):
                mask = (1 << 8 * size) - 1
                self._fields[offset + at, size] = (
                    partial(self._address, name, shift, mask),
                    partial(self._set_address, name, shift, mask),
                )

    def read(self, offset: int, size: int) -> int:
        """The field at ``offset`` if it has ``size`` bytes, else 0."""
        field = self._fields.get((offset, size))
        return field[0]() if field else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the field at ``offset`` if it has ``size`` bytes."""
        field = self._fields.get((offset, size))
        if field:
            field[1](value)

    # -- fields ------------------------------------------------------------

    def _set_device_feature_select(self, value: int) -> None:
        self._state.device_feature_select = value

    def _set_driver_feature_select(self, value: int) -> None:
        self._state.driver_feature_select = value

    def _set_queue_select(self, value: int) -> None:
        self._state.queue_select = value

    def _set_status(self, value: int) -> None:
        self._state.write_status(value)
        if value == 0:
            self._vectors.clear()
            self._was_reset()

    def _set_config_vector(self, value: int) -> None:
        self._vectors.config = self._vectors.usable(value)

    def _queue_size(self) -> int:
        queue = self._state.queue
        return queue.size if queue else 0

    def _queue_enable(self) -> int:
        queue = self._state.queue
        return int(queue.enabled) if queue else 0

    def _queue_notify_off(self) -> int:
        return self._state.queue_select if self._state.queue else 0

    def _queue_vector(self) -> int:
        return self._vectors.queues[self._state.queue_select] if self._state.queue else 0

    def _set_queue_vector(self, value: int) -> None:
        if self._state.queue:
            self._vectors.queues[self._state.queue_select] = self._vectors.usable(value)

    def _set_queue_reset(self, value: int) -> None:
        if self._state.write_queue_reset(value):
            self._vectors.queues[self._state.queue_select] = VIRTIO_MSI_NO_VECTOR

    def _address(self, name: str, shift: int, mask: int) -> int:
        queue: QueueRegisters | None = self._state.queue
        return int(getattr(queue, name)) >> shift & mask if queue else 0

    def _set_address(self, name: str, shift: int, mask: int, value: int) -> None:
        queue = self._state.writable_queue
        if queue:
            kept = getattr(queue, name) & ~(mask << shift)
            setattr(queue, name, kept | (value & mask) << shift)


def _zero() -> int:
    """Read a field that is always 0."""
    return 0


def _ignore(value: int) -> None:
    """Ignore a write of a read-only field."""
