"""A thread that runs a vCPU, and that any thread can stop or pause at once.

Getting a thread out of KVM_RUN takes two things. ``immediate_exit`` in the
kvm_run area makes the *next* KVM_RUN return; a signal ends the current one.
In this order, at least one of them works at every moment between the thread's last
check of its orders and KVM_RUN.

The signal has no handler. The thread blocks it, and KVM_SET_SIGNAL_MASK unblocks it
only inside KVM_RUN. There it only ends KVM_RUN, and stays pending until the thread
takes it with sigtimedwait. So any thread can send it, and neither the program's
handlers nor the main thread notice. The thread blocks all other signals, so that the
main thread gets them, where Python runs their handlers and blocking calls wake up.
"""

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from pykvm.host.threads import run_on, show_thread_name, start
from pykvm.kvm.exits import Exit, Interrupted
from pykvm.kvm.vcpu import Vcpu

Handler = Callable[[Exit], object | None]
"""Handles one exit in the vCPU's thread. None: continue. Any other result ends the
thread and becomes its ``outcome``. It never gets Interrupted."""

KICK_SIGNAL = signal.SIGRTMIN + 6
_MORE_SECONDS = 1e-4
_MOST_TRIES = 100
LONG_PAUSE_SECONDS = 1.0
"""KVM_KVMCLOCK_CTRL tells the guest of longer pauses. Its lockup detectors wait tens of seconds.
A pause to inspect a vCPU takes only milliseconds."""
# Faults of the process must reach it, so that faulthandler can report them.
_FAULTS = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}
)
_OTHERS = frozenset(signal.valid_signals()) - _FAULTS


class VcpuThread:
    """Runs one vCPU in a separate thread. It does not own the vCPU.

    The thread takes exits from KVM_RUN to ``handle`` until that returns a value
    or raises, or :meth:`stop` is called. Then it calls ``on_end`` with this
    object: ``outcome`` is the result of ``handle``, ``error`` the exception of
    ``handle`` or KVM_RUN. :meth:`pause`, :meth:`resume` and :meth:`stop` are for
    other threads. They take effect as soon as KVM has completed the port or
    MMIO access of the last exit.

    A process that ``handle`` starts inherits the blocked signals.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        handle: Handler,
        on_end: "Callable[[VcpuThread], None] | None" = None,
        cpus: Collection[int] = (),
        can_stop: Callable[[Vcpu], bool] | None = None,
    ) -> None:
        """``cpus``: the host's CPUs on which the thread may run; empty: all.

        ``can_stop``: a pause begins only where this is true; the vCPU soon gets there.
        """
        self.vcpu = vcpu
        self.outcome: object | None = None
        self.error: BaseException | None = None
        self._handle = handle
        self._on_end = on_end
        self._cpus = cpus
        self._can_stop = can_stop
        self._tries = 0
        self._counts: dict[type[Exit], int] = {}
        self._thread = threading.Thread(
            target=self._main, name=f"pykvm-vcpu{vcpu.index}", daemon=True
        )
        # Guards the fields below, and wakes both sides.
        self._state = threading.Condition()
        self._pauses = 0
        self._stopping = False
        self._running = False
        self._ended = False

    def start(self) -> None:
        """Start the thread. Call it once."""
        self.vcpu.set_signal_mask(_OTHERS - {KICK_SIGNAL})
        start(self._thread, f"vCPU {self.vcpu.index}")

    def pause(self, timeout: float = 5.0) -> None:
        """Return once the thread is out of KVM_RUN and idle, or has ended.

        Pauses nest: each needs its :meth:`resume`. TimeoutError, and no
        pause, if the thread is still busy in ``handle`` after ``timeout``
        seconds.
        """
        self._check_thread()
        self.request_pause()
        if not self.wait_paused(timeout):
            self.resume()
            raise TimeoutError(f"vCPU {self.vcpu.index} did not pause within {timeout} s")

    def request_pause(self) -> None:
        """As :meth:`pause`, but without waiting. Once ``handle`` returns, the guest does not run.

        Any thread may call it. It needs its :meth:`resume`, too.
        """
        with self._state:
            self._pauses += 1
            self._kick()

    def wait_paused(self, timeout: float) -> bool:
        """Wait for a requested pause, for ``timeout`` seconds at most; True if it holds."""
        self._check_thread()
        with self._state:
            return self._state.wait_for(lambda: not self._running, timeout)

    def resume(self) -> None:
        """Undo one :meth:`pause`."""
        with self._state:
            assert self._pauses > 0, "resume without pause"
            self._pauses -= 1
            self._state.notify_all()

    @contextmanager
    def paused(self, timeout: float = 5.0) -> Iterator[None]:
        """In this context, the thread does not touch the vCPU, and other threads may."""
        self.pause(timeout)
        try:
            yield
        finally:
            self.resume()

    def stop(self) -> None:
        """End the thread at once, also while paused. Does not wait. Any thread may call it."""
        with self._state:
            self._stopping = True
            self._kick()
            self._state.notify_all()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread, including ``on_end``; TimeoutError."""
        if self._thread.ident is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"vCPU {self.vcpu.index} did not end within {timeout} s")

    @property
    def ended(self) -> bool:
        """True if the thread has ended, so that the vCPU will not run again."""
        return self._ended

    @property
    def exit_counts(self) -> dict[str, int]:
        """The number of exits of each kind so far: ``{"IoExit": 7, "Interrupted": 1}``."""
        return {kind.__name__: count for kind, count in self._counts.copy().items()}

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a vCPU thread cannot wait for itself to pause")

    def _kick(self) -> None:
        # The lock is held, so the thread can neither end nor reset immediate_exit now. An
        # idle or unstarted thread checks its orders before it runs the vCPU. A thread that
        # stops itself needs no signal.
        if self._running:
            self.vcpu.set_immediate_exit(True)
            if threading.current_thread() is not self._thread:
                assert self._thread.ident is not None
                signal.pthread_kill(self._thread.ident, KICK_SIGNAL)

    def _main(self) -> None:
        try:
            # Until _attend this thread counts as idle, so no thread kicks it.
            signal.pthread_sigmask(signal.SIG_SETMASK, _OTHERS)
            show_thread_name(self._thread.name)
            run_on(self._cpus)
            if self._attend():
                self._loop()
        except BaseException as error:
            self.error = error
        finally:
            with self._state:
                self.vcpu.set_signal_mask(None)
                self._running = False
                self._ended = True
                self._state.notify_all()
            if self._on_end is not None:
                self._on_end(self)

    def _loop(self) -> None:
        run, handle, counts = self.vcpu.run, self._handle, self._counts
        while True:
            reason = run()
            kind = type(reason)
            counts[kind] = counts.get(kind, 0) + 1
            if kind is Interrupted:
                if self._can_stop is not None and self._runs_on():
                    continue
                if not self._attend():
                    return
                continue
            outcome = handle(reason)
            if outcome is not None:
                self.outcome = outcome
                return

    def _runs_on(self) -> bool:
        """True if the vCPU has to run a moment longer before it pauses; it is kicked again."""
        with self._state:
            wanted = self._pauses and not self._stopping and self._tries < _MOST_TRIES
            if not wanted or self._can_stop is None or self._can_stop(self.vcpu):
                self._tries = 0
                return False
            self._tries += 1
            self._consume_kick()
        timer = threading.Timer(_MORE_SECONDS, self._kick_again)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # the host has no more threads
            self._tries = _MOST_TRIES
            self._kick_again()
        return True

    def _kick_again(self) -> None:
        with self._state:
            if self._pauses or self._stopping:
                self._kick()

    def _consume_kick(self) -> None:
        self.vcpu.set_immediate_exit(False)
        while signal.sigtimedwait((KICK_SIGNAL,), 0) is not None:
            pass

    def _attend(self) -> bool:
        """Consume the kick, and wait while paused; True if the vCPU runs on."""
        with self._state:
            self._consume_kick()
            began = time.monotonic()
            while self._pauses and not self._stopping:
                self._running = False
                self._state.notify_all()
                self._state.wait()
            if not self._stopping and time.monotonic() - began > LONG_PAUSE_SECONDS:
                self.vcpu.mark_stopped()
            self._running = not self._stopping
            return self._running
