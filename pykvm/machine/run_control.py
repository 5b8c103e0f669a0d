"""Stops and resumes the guest.

::

              pause, or an I/O error            every vCPU idle,
              whose policy says stop            every disk quiet
    RUNNING ──────────────────────────► stopping ──────────────► PAUSED or IO_ERROR
       ▲                                   │                              │
       └──────────────── resume ───────────┴────────── resume ────────────┘

The vCPUs stop first, then the disks, because a running vCPU could submit
requests to a quiet disk. They resume in the opposite order, so that a disk
retries its failed requests before the driver adds new ones.

An I/O error occurs in the disk's thread, which must not wait for vCPUs: a
vCPU that resets the disk waits for that very thread. So the thread only
queues an order, and the control thread carries it out. A vCPU may be busy for
any time, such as when no process reads the console. Meanwhile the control
thread polls that vCPU, and does not wait while it holds the lock.

A listener that hears of such an error also hears of the stop. A resume after
the error's announcement answers both, whether or not the stop is complete. A
resume before the announcement comes before the disk halts: ``telling`` is
held from the halt to the announcement.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from queue import Empty, SimpleQueue
from time import monotonic

from pykvm.errors import UsageError
from pykvm.host.threads import start
from pykvm.lean.typing_names import Final, Protocol
from pykvm.machine.events import Event, Resume, Stop
from pykvm.machine.run_state import RunState

POLL_SECONDS: Final = 0.05
"""The time between two polls of a busy vCPU, and of the end of the run while a disk stops."""
KICK_SECONDS: Final = 0.005
"""More time than a vCPU in the guest needs to stop: a vCPU that takes longer is busy."""


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
    """Stops and resumes all vCPUs and disks of a machine together.

    :meth:`io_error` and the ``request_`` methods do not wait, and any thread
    may call them. The threads of vCPUs and disks must not call the other
    methods. ``telling`` is for the disks: see DeviceHooks.
    """

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        disks: Sequence[Pausable],
        announce: Callable[[Event], None],
        over: Callable[[], bool],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """``announce`` must not wait. ``over()`` is True once the run has ended: from then on
        nothing is stopped or resumed. ``on_failure`` gets an exception that ended the control
        thread, which is a bug.
        """
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
        # Guards _reason and state, and is held throughout a change of state.
        self._lock = threading.Lock()
        self._reason: RunState | None = None  # the reason for a stop, complete or not
        # Guards _failed, and gives all listeners the same order of errors and resumes. The thread
        # of a disk holds it from its halt on.
        self.telling = threading.RLock()
        self._failed = False  # an error was announced, and no resume has followed

    def start(self) -> None:
        """Start the control thread; earlier requests wait for it. Once."""
        start(self._thread, "stopping the guest")

    def close(self) -> None:
        """End the control thread. The vCPUs have been told to end. May be repeated."""
        self._closed = True
        self._orders.put(_Order.END)
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            pass  # what had begun in other threads is over

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Within it the guest is neither stopped nor resumed, and disks may come and go.

        UsageError after :meth:`close`.
        """
        with self._lock:
            self.check_open()
            yield

    def check_open(self) -> None:
        """UsageError after :meth:`close`."""
        if self._closed:
            raise UsageError("this machine is closed", "use it before its end")

    def pause(self, timeout: float) -> None:
        """Return when the guest has stopped: no vCPU runs, no disk executes anything.

        TimeoutError, and nothing is stopped, if a vCPU is busy for ``timeout``
        seconds. The disks may take longer, as the host needs. The end of the
        run does not wait for them.
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
        """Resume the guest, whatever the reason for its stop, complete or not."""
        with self._lock:
            if self._over():
                return
            with self.telling:
                if self._reason is None and not self._failed:
                    return
                if self.state is RunState.RUNNING:
                    # A listener that got the error waits for the stop that follows.
                    self._announce(Stop())
                self._failed = False
                self.resumes += 1
                self.state = RunState.RUNNING
                self._announce(Resume())
                for disk in self._disks:
                    disk.resume()
            self._release()

    @property
    def undisturbed(self) -> bool:
        """True while the guest is neither stopped nor about to stop."""
        return self._reason is None and not self._failed

    @contextmanager
    def still(self, timeout: float) -> Iterator[None]:
        """Within it nothing runs, as after :meth:`pause`, without an event or a change of state.

        TimeoutError, and nothing is stopped, if a vCPU or a disk's operation takes longer than
        ``timeout`` seconds. UsageError after :meth:`close`.
        """
        with self._lock, ExitStack() as stack:
            if self.state is RunState.RUNNING:
                self._still(stack, monotonic() + timeout)
            self.check_open()
            yield

    def _still(self, stack: ExitStack, deadline: float) -> None:
        for vcpu in self._vcpus:
            vcpu.request_pause()
            stack.callback(vcpu.resume)
        for vcpu in self._vcpus:
            if not vcpu.wait_paused(max(0.0, deadline - monotonic())):
                raise TimeoutError("a vCPU is busy and did not stop in time")
        stack.callback(self._wake_disks)
        for disk in self._disks:
            while not disk.pause(POLL_SECONDS):
                if self._closed or self._over():
                    return
                if monotonic() >= deadline:
                    raise TimeoutError("a disk is busy and did not end its operations in time")

    def _wake_disks(self) -> None:
        with self.telling:
            # A disk that has failed meanwhile waits for the user, and all stop with it.
            if not self._failed and not self._over():
                for disk in self._disks:
                    disk.resume()

    @property
    def failed(self) -> bool:
        """An error of a disk has stopped the guest, or is about to."""
        with self.telling:
            return self._failed

    def put_back(self, failed: bool) -> None:
        """The machine was put back to a moment at which it was :attr:`failed`, or not.

        Only within :meth:`still`, or before the start. A machine that the user has paused stays
        so. Any other stops, or forgets the error; the caller then resumes it.
        """
        with self.telling:
            self._failed = failed
            if self.state is not RunState.RUNNING:
                return
            if failed:
                if self._reason is None:
                    for vcpu in self._vcpus:
                        vcpu.request_pause()
                self._reason = self.state = RunState.IO_ERROR
                self._announce(Stop())
            elif self._reason is RunState.IO_ERROR:
                self._release()  # a stop had begun for an error that has not happened

    def wake_disks(self) -> None:
        """Let the disks of a machine that begins from a snapshot work, unless it is stopped."""
        with self._lock:
            if self.state is RunState.RUNNING:
                self._wake_disks()

    def unless_busy(self, look: Callable[[], bool]) -> bool:
        """``look()``, or False while the guest stops, resumes, is stopped or stands still."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self.undisturbed and look()
        finally:
            self._lock.release()

    def io_error(self, error: Event) -> None:
        """Announce ``error``, for which a disk has halted, and order a stop of the guest."""
        with self.telling:
            self._announce(error)
            self._failed = True
        self._orders.put(_Order.IO_ERROR)

    def request_pause(self) -> None:
        """Order a pause, after earlier requests, for when every vCPU is idle."""
        self._orders.put(_Order.PAUSE)

    def request_resume(self) -> None:
        """Order a :meth:`resume`, after earlier requests."""
        self._orders.put(_Order.RESUME)

    def _stop(self, reason: RunState, seconds: float) -> bool:
        """Begin or continue a stop; True once all is stopped or the run is over."""
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
            while not disk.pause(POLL_SECONDS):
                # The end of the run cancels the disk's operations, while a pause waits for them.
                if self._closed or self._over():
                    return True
        if not self._over():
            self.state = self._reason
            self._announce(Stop())
        return True

    def _release(self) -> None:
        """Let the vCPUs run again after a request to stop them."""
        if self._reason is None:
            return
        self._reason = None
        for vcpu in self._vcpus:
            vcpu.resume()

    def _run(self) -> None:
        try:
            stopped = True
            while (order := self._next(None if stopped else POLL_SECONDS)) is not _Order.END:
                stopped = self._obey(order)
        except BaseException as error:
            self._on_failure(error)

    def _next(self, seconds: float | None) -> _Order | None:
        try:
            return self._orders.get(timeout=seconds)
        except Empty:
            return None

    def _obey(self, order: _Order | None) -> bool:
        """Carry out ``order`` and continue a stop that has begun; True if none is left to do."""
        if order is _Order.RESUME:
            self.resume()
        with self._lock:
            reason = self._reason
            if order is _Order.PAUSE:
                reason = RunState.PAUSED
            elif order is _Order.IO_ERROR and self._failed:
                reason = RunState.IO_ERROR
            return reason is None or self._stop(reason, KICK_SECONDS)
