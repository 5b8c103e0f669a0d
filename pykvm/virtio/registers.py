"""The device status machine behind the registers of every virtio transport. Pure.

A transport decodes its own register layout (PCI structures, MMIO words) and
calls :class:`TransportState`, which has the rules of virtio 1.2 §2.1, §2.2 and
§3.1.

The rules of the status register are in :mod:`pykvm.virtio.status`.

A driver may also write these; later writes are ignored:

==================================  ==================================================
feature bits                        until FEATURES_OK; bits not offered are kept, so
                                    that FEATURES_OK can be withheld for them
size, addresses of a queue          until it is enabled or DRIVER_OK. A size that is 0,
                                    above the maximum or, for a split queue, not a power
                                    of 2 is ignored
enable of a queue                   1 only, until DRIVER_OK. Ring addresses are checked
                                    at DRIVER_OK, when they are used
reset of a queue (§2.6.1)           1 only, with RING_RESET, if the queue is enabled. It
                                    returns when the queue is quiet. Then size, addresses
                                    and enable may be written again in any status, and a
                                    queue that is enabled after DRIVER_OK starts at once
queue select                        always. While it is out of range, reads give 0 and writes
                                    are ignored. From FEATURES_OK on, queues that the features
                                    leave out are out of range
==================================  ==================================================

Threads: the transport serialises every call that comes from the driver. The
device's threads call the callbacks of the :class:`Activation` at any time,
also while :meth:`TransportState.reset` waits for these threads. So the callbacks
touch only single attributes and the transport's :class:`Signals`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pykvm.memory.ram import Ram
from pykvm.snapshot.fields import Fields, Saved
from pykvm.virtio.constants import (
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)
from pykvm.virtio.device import Activation, Signals, VirtioDevice
from pykvm.virtio.device_config import DeviceConfig
from pykvm.virtio.queue import Virtqueue, no_fence
from pykvm.virtio.queue_registers import QueueRegisters
from pykvm.virtio.status import STATUS_RULES, reachable

_SELECTS: Final = MappingProxyType(
    {
        "device_feature_select": 0xFFFFFFFF,
        "driver_feature_select": 0xFFFFFFFF,
        "queue_select": 0xFFFF,
    }
)
"""The registers that select others, and their largest values."""
_MOST_REASON = 500


class TransportState:
    """The device-independent registers of one virtio device.

    ``kicks`` are the transport's eventfds, one per queue, as in
    :class:`Activation`. The queues get ``fence``. ``reason`` says why
    FEATURES_OK was withheld or why the device needs a reset, which helps
    those who debug a driver.
    """

    def __init__(
        self,
        device: VirtioDevice,
        ram: Ram,
        kicks: Sequence[int],
        signals: Signals,
        *,
        fence: Callable[[], None] = no_fence,
    ) -> None:
        self.device = device
        self.offered = device.features | VIRTIO_F_VERSION_1
        self.queues = tuple(QueueRegisters(size) for size in device.queue_sizes)
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.driver_features = 0
        self.queue_select = 0
        self.config = DeviceConfig(device)
        self.reason = ""
        self._count = len(self.queues)
        self._ram = ram
        self._kicks = kicks
        self._signals = signals
        self._fence = fence
        self._status = 0
        self._needs_reset = False

    # -- features ----------------------------------------------------------

    @property
    def device_feature(self) -> int:
        """The 32 offered bits that ``device_feature_select`` selects; 0 beyond 64."""
        return _window(self.offered, self.device_feature_select)

    @property
    def driver_feature(self) -> int:
        """The 32 accepted bits that ``driver_feature_select`` selects; 0 beyond 64."""
        return _window(self.driver_features, self.driver_feature_select)

    def write_driver_feature(self, value: int) -> None:
        """The driver accepts 32 feature bits; ignored from FEATURES_OK on."""
        if self._status & VIRTIO_CONFIG_S_FEATURES_OK or self.driver_feature_select > 1:
            return
        shift = 32 * self.driver_feature_select
        kept = self.driver_features & ~(0xFFFFFFFF << shift)
        self.driver_features = kept | (value & 0xFFFFFFFF) << shift

    # -- status ------------------------------------------------------------

    @property
    def status(self) -> int:
        """The device status register."""
        return self._status | (VIRTIO_CONFIG_S_NEEDS_RESET if self._needs_reset else 0)

    @property
    def active(self) -> bool:
        """DRIVER_OK is set and the device was activated: notifications make sense."""
        return bool(self._status & VIRTIO_CONFIG_S_DRIVER_OK) and not self._needs_reset

    def write_status(self, value: int) -> None:
        """The driver writes the status register (table at the head of this file)."""
        if value == 0:
            self.reset()
            return
        for bit, needed in STATUS_RULES:
            if not value & bit or self._status & bit or self._status & needed != needed:
                continue
            if bit == VIRTIO_CONFIG_S_FEATURES_OK and not self._features_agreed():
                continue
            self._status |= bit
            if bit == VIRTIO_CONFIG_S_FEATURES_OK:
                self._count = self.device.queue_count(self.driver_features)
                for queue in self.queues[self._count :]:
                    queue.clear()
            elif bit == VIRTIO_CONFIG_S_DRIVER_OK:
                self._activate()

    def reset(self) -> None:
        """Return to the state after power-on, once the device is quiet."""
        self.device.reset()
        self._status = 0
        self._needs_reset = False
        self.reason = ""
        self.device_feature_select = self.driver_feature_select = 0
        self.driver_features = 0
        self.queue_select = 0
        self._count = len(self.queues)
        for queue in self.queues:
            queue.clear()

    def _features_agreed(self) -> bool:
        extra = self.driver_features & ~self.offered
        if extra:
            self.reason = f"the driver accepts feature bits that were not offered: {extra:#x}"
        elif not self.driver_features & VIRTIO_F_VERSION_1:
            self.reason = "the driver does not accept VIRTIO_F_VERSION_1"
        elif not self.device.negotiated(self.driver_features):
            self.reason = f"the device does not accept the feature bits {self.driver_features:#x}"
        else:
            return True
        return False

    # -- queues ------------------------------------------------------------

    @property
    def queue(self) -> QueueRegisters | None:
        """The selected queue; None if it is out of range."""
        return self.queues[self.queue_select] if self.queue_select < self._count else None

    @property
    def writable_queue(self) -> QueueRegisters | None:
        """The selected queue while its size and addresses may still be written."""
        queue = self.queue
        if queue is None or queue.enabled:
            return None
        late = self._status & VIRTIO_CONFIG_S_DRIVER_OK and not queue.was_reset
        return None if late else queue

    def write_queue_size(self, value: int) -> None:
        """Choose a smaller size for the selected queue; ignore an impossible one."""
        queue = self.writable_queue
        if queue and queue.allows_size(value, self.driver_features):
            queue.size = value

    def write_queue_enable(self, value: int) -> None:
        """Enable the selected queue if ``value`` is 1 (§4.1.4.3.2)."""
        queue = self.writable_queue
        if queue is None or value != 1:
            return
        queue.enabled = True
        if self.active and (started := self._make_queue(self.queue_select, queue)):
            self.device.start_queue(self.queue_select, started)
            queue.served = True

    def write_queue_reset(self, value: int) -> bool:
        """Reset the selected queue if ``value`` is 1; True if the queue could be reset (§2.6.1)."""
        queue = self.queue
        negotiated = self._status & VIRTIO_CONFIG_S_FEATURES_OK and (
            self.driver_features & VIRTIO_F_RING_RESET
        )
        if value != 1 or queue is None or not queue.enabled or not negotiated:
            return False
        served = queue.served
        if served:
            self.device.stop_queue(self.queue_select)
        queue.clear()
        queue.was_reset = served
        return True

    # -- activation --------------------------------------------------------

    def _activate(self) -> None:
        if self._needs_reset:
            return
        queues: list[Virtqueue | None] = []
        for index, registers in enumerate(self.queues):
            if not registers.enabled:
                queues.append(None)
            elif queue := self._make_queue(index, registers):
                queues.append(queue)
            else:
                return
        self.device.activate(self._activation(queues))
        for registers in self.queues:
            registers.served = registers.enabled

    def _activation(self, queues: Sequence[Virtqueue | None]) -> Activation:
        return Activation(
            ram=self._ram,
            features=self.driver_features,
            queues=queues,
            kicks=self._kicks,
            interrupt=self._signals.queue_interrupt,
            config_changed=self.config_changed,
            broken=self._broken,
        )

    def _make_queue(self, index: int, registers: QueueRegisters) -> Virtqueue | None:
        """Queue ``index`` at the start of its rings; None, and NEEDS_RESET, if that cannot be."""
        if reason := registers.ring_error(self._ram, self.driver_features):
            self._broken(f"queue {index}: {reason}")
            return None
        return registers.make_queue(self._ram, index, self.driver_features, self._fence)

    # -- snapshots ---------------------------------------------------------

    def save(self) -> Fields:
        """The registers and the device's state. The owner has paused the device."""
        return {
            **{name: getattr(self, name) for name in _SELECTS},
            "status": self._status,
            "needs_reset": self._needs_reset,
            "reason": self.reason[:_MOST_REASON],
            "driver_features": self.driver_features,
            "generation": self.config.generation,
            "queues": [queue.save() for queue in self.queues],
            "device": self.device.save(),
        }

    def load(self, saved: Saved) -> None:
        """Take over what :meth:`save` gave, from any state. SnapshotError, and all is reset.

        The device serves again when its owner resumes it.
        """
        try:
            self._load(saved)
        except BaseException:
            self.reset()
            raise

    def _load(self, saved: Saved) -> None:
        selects = {name: saved.integer(name, 0, most) for name, most in _SELECTS.items()}
        status = saved.integer("status", 0, 0xFF)
        if status != reachable(status):
            saved.refuse(f"no driver reaches the status {status:#x}")
        needs_reset = saved.flag("needs_reset")
        reason = saved.text("reason", _MOST_REASON)
        features = saved.integer("driver_features", 0, (1 << 64) - 1)
        generation = saved.integer("generation", 0, 0xFF)
        queues = tuple(QueueRegisters(queue.max_size) for queue in self.queues)
        for one, registers in zip(saved.parts("queues", len(queues)), queues, strict=True):
            registers.load(one)
        device = saved.part("device")
        saved.end()
        active = bool(status & VIRTIO_CONFIG_S_DRIVER_OK) and not needs_reset
        if active and self.active and features == self.driver_features and queues == self.queues:
            self._set(selects)
            self._status, self.reason = status, reason
            self.device.load_in_place(device)
            self.config.load(generation)
            return
        self.reset()
        self.driver_features, self.queues = features, queues
        if status & VIRTIO_CONFIG_S_FEATURES_OK:
            if not self._features_agreed():
                saved.refuse(self.reason)
            self._count = self.device.queue_count(features)
        self._set(selects)
        self._status, self._needs_reset, self.reason = status, needs_reset, reason
        self.device.load(device, self._restored(saved) if active else None)
        self.config.load(generation)

    def _set(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _restored(self, saved: Saved) -> Activation:
        """The activation of the saved driver, with new queues."""
        queues: list[Virtqueue | None] = []
        for index, registers in enumerate(self.queues):
            if registers.served != registers.enabled or (registers.served and index >= self._count):
                saved.refuse(f"queue {index} cannot be served")
            reason = registers.ring_error(self._ram, self.driver_features)
            if registers.served and reason:
                saved.refuse(f"queue {index}: {reason}")
            queues.append(self._make_queue(index, registers) if registers.served else None)
        return self._activation(queues)

    def config_changed(self) -> None:
        """Interrupt the driver, because the configuration space changed (§2.5). Any thread."""
        if self._status & VIRTIO_CONFIG_S_DRIVER_OK:
            self._signals.config_interrupt()

    def lacks(self, lack: str) -> None:
        """The host lacks a resource, ``lack``, for the transport: unusable until reset."""
        self._broken(f"the host cannot serve the device: {lack}")
        self.device.lacks(lack)

    def _broken(self, reason: str) -> None:
        self.reason = reason
        self._needs_reset = True
        if self._status & VIRTIO_CONFIG_S_DRIVER_OK:
            self._signals.config_interrupt()


def _window(bits: int, select: int) -> int:
    return bits >> 32 * select & 0xFFFFFFFF if select < 2 else 0
