"""Stopping the guest and letting it go on.

::

              pause, or an I/O error            every vCPU idle,
              that is to stop the guest         every disk quiet
    RUNNING ──────────────────────────► stopping ──────────────► PAUSED or IO_ERROR
       ▲                                   │                              │
       └──────────────── resume ───────────┴────────── resume ────────────┘

The vCPUs stop first, then the disks: a vCPU could give a quiet disk more to
do. They go on in the opposite order, so that what a disk kept is tried again
before what the driver adds.

An I/O error comes up in the disk's thread, which must not wait for vCPUs: one
of them may be resetting the disk and waiting for that very thread. So the
thread leaves an order, and the control thread carries it out. A vCPU may be
busy for any time, for one when nobody reads the console that it prints to;
the control thread then looks again and again, and never waits with the lock.

Whoever hears of such an error hears of the stop, and a resume from then on is
an answer to both, whether or not the stop has been made by then. A resume
before is none: it comes before the disk halts, and not between that and the
announcement (``telling``).
"""

import threading
from collections.abc import Callable, Sequence
from enum import Enum
from queue import Empty, SimpleQueue
from time import monotonic

from pykvm.host.threads import start
from pykvm.lean.typing_names import Final, Protocol
from pykvm.machine.events import Event, Resume, Stop
from pykvm.machine.outcome import Outcome, OutcomeKind

LOOK_SECONDS: Final = 0.05
"""How often somebody looks whether a vCPU that is busy has become idle, or whether the run has
ended while a disk is awaited."""
KICK_SECONDS: Final = 0.005
"""What a vCPU that runs the guest takes to stop, and more: who takes longer is busy."""


class RunState(Enum):
    """What a machine is doing, by QEMU's names."""

    PRELAUNCH = "prelaunch"
    """It has not been started."""
    RUNNING = "running"
    """The guest runs."""
    PAUSED = "paused"
    """Stopped by the user."""
    IO_ERROR = "io-error"
    """Stopped by an I/O error of a disk whose policy says so."""
    SHUTDOWN = "shutdown"
    """The run is over."""
    GUEST_PANICKED = "guest-panicked"
    """The run is over: the guest's kernel panicked."""
    INTERNAL_ERROR = "internal-error"
    """The run is over: the VMM could not go on."""

    @classmethod
    def after(cls, outcome: Outcome) -> "RunState":
        """The state of a machine whose run has ended with ``outcome``."""
        if outcome.kind is OutcomeKind.PANIC:
            return cls.GUEST_PANICKED
        return cls.INTERNAL_ERROR if outcome.kind is OutcomeKind.ERROR else cls.SHUTDOWN

    @property
    def over(self) -> bool:
        """The run has ended."""
        return self in (RunState.SHUTDOWN, RunState.GUEST_PANICKED, RunState.INTERNAL_ERROR)


class Pausable(Protocol):
    """A disk: see :class:`pykvm.devices.virtio_blk.VirtioBlk`."""

    def pause(self, timeout: float) -> bool: ...
    def resume(self) -> None: ...


class Vcpu(Protocol):
    """A vCPU: see :class:`pykvm.kvm.runner.VcpuThread`."""

    def request_pause(self) -> None: ...
    def wait_paused(self, timeout: float) -> bool: ...
    def resume(self) -> None: ...


class _Order(Enum):
    PAUSE = 1
    RESUME = 2
    IO_ERROR = 3
    END = 4


class RunControl:
    """Stops all vCPUs and disks of a machine together, and lets them go on together.

    :meth:`io_error` and the ``request_`` methods do not wait and may be called
    from any thread; the others not from the threads of vCPUs and disks.
    ``over()`` tells whether the run has ended: from then on nothing is stopped
    or resumed. ``announce`` must not wait. ``telling`` is for the disks: see
    VirtioBlk.
    """

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        disks: Sequence[Pausable],
        announce: Callable[[Event], None],
        over: Callable[[], bool],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """``on_failure`` is called with an exception that ended the control thread, a bug."""
        self.state = RunState.RUNNING
        self.resumes = 0
        self._vcpus = vcpus
        self._disks = disks
        self._announce = announce
        self._over = over
        self._on_failure = on_failure
        self._closed = False
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="run control", daemon=True)
        # Guards what follows, and is held throughout a change of state.
        self._lock = threading.Lock()
        self._reason: RunState | None = None  # to stop, be it done or not
        # Guards what follows, and orders errors and resumes for all who hear of them: the thread
        # of a disk holds it from its halt on.
        self.telling = threading.RLock()
        self._failed = False  # an error was announced that no resume has taken up

    def start(self) -> None:
        """Start the control thread: before it, the requests wait. Once."""
        start(self._thread, "stopping the guest")

    def close(self) -> None:
        """End the control thread. The vCPUs have been told to end. May be repeated."""
        self._closed = True
        self._orders.put(_Order.END)
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def undisturbed(self) -> bool:
        """Neither stopped nor about to."""
        return self._reason is None and not self._failed

    def pause(self, timeout: float) -> None:
        """Return when the guest has stopped: no vCPU runs, no disk executes anything.

        TimeoutError, and nothing done, if a vCPU is busy for ``timeout``
        seconds. How long the disks take is up to the host; the end of the run
        does not wait for them.
        """
        done = False
        with self._lock:
            asked = self._reason is not None
            try:
                done = self._stop(RunState.PAUSED, timeout)
            finally:
                if not done and not asked:
                    self._release()
        if not done:
            raise TimeoutError(f"a vCPU is busy and did not stop within {timeout:g} s")

    def resume(self) -> None:
        """Let the guest go on, whatever it was stopped for, or is about to."""
        with self._lock:
            if self._over():
                return
            with self.telling:
                if self._reason is None and not self._failed:
                    return
                if self.state is RunState.RUNNING:
                    # Whoever was told of the error waits for the stop that follows.
                    self._announce(Stop())
                self._failed = False
                self.resumes += 1
                self.state = RunState.RUNNING
                self._announce(Resume())
                for disk in self._disks:
                    disk.resume()
            self._release()

    def io_error(self, error: Event) -> None:
        """Announce ``error``, for which a disk has halted, and have the guest stopped."""
        with self.telling:
            self._announce(error)
            self._failed = True
        self._orders.put(_Order.IO_ERROR)

    def request_pause(self) -> None:
        """Have the guest paused as soon as every vCPU is idle, after earlier requests."""
        self._orders.put(_Order.PAUSE)

    def request_resume(self) -> None:
        """Have :meth:`resume` called, after earlier requests."""
        self._orders.put(_Order.RESUME)

    def _stop(self, reason: RunState, seconds: float) -> bool:
        """Stop, or go on stopping; whether all is stopped, or the run over."""
        if self.state is not RunState.RUNNING or self._over():
            return True
        if self._reason is None:
            self._reason = reason
            for vcpu in self._vcpus:
                vcpu.request_pause()
        deadline = monotonic() + seconds
        for vcpu in self._vcpus:
            if not vcpu.wait_paused(max(0.0, deadline - monotonic())):
                return False
        for disk in self._disks:
            while not disk.pause(LOOK_SECONDS):
                # The end of the run cancels what the disk executes; a pause does not.
                if self._closed or self._over():
                    return True
        if not self._over():
            self.state = self._reason
            self._announce(Stop())
        return True

    def _release(self) -> None:
        """Let the vCPUs run, if they have been asked to stop."""
        if self._reason is None:
            return
        self._reason = None
        for vcpu in self._vcpus:
            vcpu.resume()

    def _run(self) -> None:
        try:
            stopped = True
            while (order := self._next(None if stopped else LOOK_SECONDS)) is not _Order.END:
                stopped = self._obey(order)
        except BaseException as error:
            self._on_failure(error)

    def _next(self, seconds: float | None) -> _Order | None:
        try:
            return self._orders.get(timeout=seconds)
        except Empty:
            return None

    def _obey(self, order: _Order | None) -> bool:
        """Carry out ``order`` and go on with a stop that was begun; whether that is done."""
        if order is _Order.RESUME:
            self.resume()
        with self._lock:
            reason = self._reason
            if order is _Order.PAUSE:
                reason = RunState.PAUSED
            elif order is _Order.IO_ERROR and self._failed:
                reason = RunState.IO_ERROR
            return reason is None or self._stop(reason, KICK_SECONDS)
