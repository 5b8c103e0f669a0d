"""The contract between a virtio device and the transport that carries it.

A device knows requests, a transport knows registers, and they know nothing else of
each other. The PCI transport can host any device that implements
:class:`VirtioDevice`. A device runs on any transport that can fill in an
:class:`Activation`, such as the tests' transport of a test driver and eventfds.
Nothing here does I/O.

The calls, and the thread that makes each::

    transport (a vCPU thread)         device (its own I/O thread)
    -------------------------         ---------------------------
    features, queue_sizes, config
    write_config                 -->
    activate(activation)         -->  starts to serve the queues
                                 <--  activation.interrupt(queue)
                                 <--  activation.config_changed()
                                 <--  activation.broken(reason)
    stop_queue(index)            -->  drains, stops that queue; returns when quiet
    start_queue(index, queue)    -->  starts to serve it again
    hold()                       -->  keeps off guest memory; returns when quiet
    release()                    -->  continues
    lacks(lack)                  -->  drains, stops; returns when quiet
    reset()                      -->  drains, stops; returns when quiet
    save(), load(saved, activation)   nothing is in flight, and the driver does not run
    close()                      -->  the end
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pykvm.lean.records import record
from pykvm.memory.ram import Ram
from pykvm.virtio.queue import Virtqueue

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved


@record
class Activation:
    """The values that a transport hands to a device when the driver sets DRIVER_OK.

    ``ram`` is the guest's memory and ``features`` the negotiated bits.
    ``queues[i]`` is queue i, ready for use, or None where the driver left it
    disabled; ``kicks[i]`` is the eventfd, non-blocking, that becomes readable
    when the driver notifies queue i (owned by the transport).

    ``interrupt(i)`` tells the driver that queue i has used buffers: call it
    only when :meth:`Virtqueue.publish` asks for it. ``config_changed()``
    tells it that ``config`` changed. ``broken(reason)`` sets
    DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2): the guest's rings can no longer be
    trusted, or the host cannot serve them, and the device serves nothing until
    reset. All three may be called from any thread and never block on the guest.
    """

    ram: Ram
    features: int
    queues: Sequence[Virtqueue | None]
    kicks: Sequence[int]
    interrupt: Callable[[int], None]
    config_changed: Callable[[], None]
    broken: Callable[[str], None]


class Signals(Protocol):
    """How a transport interrupts the driver. Any thread may call it; it never waits for the
    driver's calls."""

    def queue_interrupt(self, index: int) -> None:
        """Queue ``index`` has used buffers."""
        ...

    def config_interrupt(self) -> None:
        """The configuration changed, or the status gained NEEDS_RESET."""
        ...


class VirtioDevice(Protocol):
    """A virtio device as its transport sees it. The transport serialises these calls."""

    @property
    def device_id(self) -> int:
        """The virtio device type, such as 2 for a block device (virtio 1.2 §5)."""
        ...

    @property
    def features(self) -> int:
        """The device-type and ring feature bits that the device offers.

        The transport adds VIRTIO_F_VERSION_1. Every transport supports
        VIRTIO_F_NOTIFICATION_DATA and VIRTIO_F_RING_RESET.
        """
        ...

    @property
    def queue_sizes(self) -> Sequence[int]:
        """The largest size of each queue, a power of 2; its length is the number of queues."""
        ...

    @property
    def config(self) -> bytes:
        """The device-specific configuration space, of a length that never changes.

        A new bytes object whenever the content changes: so the transport notices
        every change, and no access sees half of one.
        """
        ...

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver writes to the configuration space; writes of read-only fields are ignored."""
        ...

    def negotiated(self, features: int) -> bool:
        """True if the driver may run with these bits; False withholds FEATURES_OK."""
        ...

    def queue_count(self, features: int) -> int:
        """The number of queues, from queue 0 on, for a driver that runs with these bits."""
        ...

    def activate(self, activation: Activation) -> None:
        """Start to serve, beginning with the requests that wait in the queues, without a kick.

        ``broken`` may be called before this returns, as in :meth:`start_queue`.
        """
        ...

    def stop_queue(self, index: int) -> None:
        """Reset an active queue (virtio 1.2 §2.6.1) as :meth:`reset` resets the device.

        Called only if VIRTIO_F_RING_RESET is offered, like :meth:`start_queue`.
        Harmless if the device serves nothing until reset.
        """
        ...

    def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Serve ``queue`` as queue ``index``, which :meth:`stop_queue` stopped."""
        ...

    def hold(self) -> None:
        """Neither touch guest memory nor raise a queue's interrupt until :meth:`release`.

        Completes the requests that are executing, keeps those that wait, then
        returns. Holds through resets and activations. Harmless if it holds already.
        """
        ...

    def release(self) -> None:
        """Undo :meth:`hold`, and serve the requests that wait in the queues, without a kick."""
        ...

    def lacks(self, lack: str) -> None:
        """The host lacks a resource, ``lack``, for the transport: tell the user.

        Serve nothing until reset. The driver sees DEVICE_NEEDS_RESET.
        """
        ...

    def reset(self) -> None:
        """Stop serving: complete the requests in flight, then forget the rings.

        Returns when no thread of the device touches guest memory any more.
        Harmless when not active.
        """
        ...

    def save(self) -> "Fields":
        """The state that the transport does not know. The owner has paused the device."""
        ...

    def load(self, saved: "Saved", activation: Activation | None) -> None:
        """Take over what :meth:`save` gave, after :meth:`reset` and :meth:`negotiated`.

        With ``activation``, whose queues are new, the device serves again, but not before its
        owner resumes it. It then looks at all queues without a kick, and may raise
        an interrupt of each queue that the driver has received before. SnapshotError.
        """
        ...

    def load_in_place(self, saved: "Saved") -> None:
        """As :meth:`load` for an active device, whose features and queues are those of ``saved``.

        Nothing is in flight, and the driver does not run.
        """
        ...

    def close(self) -> None:
        """Reset, then release files and threads. The device cannot be used again. Closing twice is
        harmless."""
        ...
