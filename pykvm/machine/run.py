"""The run of a machine: its stops and resumes, its events, and its end."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.end import EndOfRun
from pykvm.machine.events import Announcer, GuestPanicked, Listener, Shutdown
from pykvm.machine.halt import HaltPoll
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_control import RunControl
from pykvm.machine.run_state import RunState
from pykvm.machine.timings import Timings
from pykvm.machine.vcpu_group import STOP_SECONDS, VcpuGroup

if TYPE_CHECKING:
    from pykvm.machine.disk_reports import DiskReports
    from pykvm.machine.disks import Disk


class Run:
    """The part of a Machine that does not depend on the way in which it was built.

    The machine adds vCPUs and disks before it starts them.
    """

    def __init__(self, timings: Timings) -> None:
        self.timings = timings
        self.disks: list[Disk] = []
        self.on_end: Callable[[], None] = lambda: None
        self._judge: Callable[[Outcome], Outcome] = lambda outcome: outcome
        self._end = EndOfRun()
        self._errors: list[BaseException] = []
        self._vcpus = VcpuGroup(self._failed)
        self._started = False
        self._announcer = Announcer(self._failed)
        self._control = RunControl(
            self._vcpus.threads,
            self.disks,
            self._announcer.announce,
            self._end.__bool__,
            self._failed,
        )

    # -- the end --------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the run has ended and every vCPU has stopped; return the outcome.

        After ``timeout`` seconds the run ends with TIMEOUT. If a bug in pykvm
        raised an exception in the thread of a vCPU or device, it is raised here.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        halt = HaltPoll(self._vcpus, self._control.unless_busy)
        while not self._end.wait(_until(deadline, halt.seconds)):
            if deadline is not None and time.monotonic() >= deadline:
                self.finish(Outcome.timeout(timeout or 0))
                continue
            if halt.poll():
                self.finish(Outcome.halted())
        self._stop_vcpus()
        self.timings.mark("ended")
        if self._errors:
            raise self._errors[0]
        return self._end.outcome

    def finish(self, outcome: Outcome) -> None:
        """End the run with ``outcome`` unless it has ended. For any thread and signal handlers."""
        outcome = self._judge(outcome)
        if self._end.set(outcome):
            if outcome.kind is OutcomeKind.PANIC:
                self._announcer.announce(GuestPanicked(outcome.reason))
            self._announcer.announce(Shutdown(outcome))

    @property
    def outcome(self) -> Outcome | None:
        """The way in which the run ended; None before the end."""
        return self._end.outcome if self._end else None

    def _failed(self, error: BaseException) -> None:
        """End the run because ``error`` ended a thread of pykvm; :meth:`wait` raises it."""
        self._errors.append(error)
        self.finish(Outcome.error(str(error)))

    def _stop_vcpus(self) -> None:
        self._vcpus.stop()
        self.on_end()
        self._vcpus.join()

    # -- pausing and resuming -----------------------------------------------

    @property
    def status(self) -> RunState:
        """The present state of the machine."""
        if self._end:
            return RunState.after(self._end.outcome)
        return self._control.state if self._started else RunState.PRELAUNCH

    @property
    def resumes(self) -> int:
        """The number of times that the guest resumed after a stop."""
        return self._control.resumes

    def pause(self, timeout: float = STOP_SECONDS) -> None:
        """Stop the guest: on return no vCPU runs, and no disk executes anything.

        Harmless if the guest is stopped or the run is over. A machine that is
        paused before its start starts stopped. TimeoutError, and the guest
        keeps running, if a vCPU is busy for ``timeout`` seconds, such as with
        a console sink that blocks. The threads of vCPUs and disks must not
        call this.
        """
        self._control.pause(timeout)

    def resume(self) -> None:
        """Resume the guest after :meth:`pause` or an I/O error; else harmless.

        Disks first retry the requests that failed. For the same threads as :meth:`pause`.
        """
        self._control.resume()

    def request_pause(self) -> None:
        """Ask for :meth:`pause` without waiting for it. For any thread."""
        self._control.request_pause()

    def request_resume(self) -> None:
        """Ask for :meth:`resume`, after earlier requests, without waiting. For any thread."""
        self._control.request_resume()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each event (:mod:`pykvm.machine.events`) from now on.

        One thread calls all listeners, one at a time. In it a listener may
        call any method of the machine; while it blocks, later events wait. An
        exception in a listener ends the run like any other bug. The function
        that is returned removes the listener, after the delivery of all
        earlier events.
        """
        return self._announcer.listen(listener)

    def flush_events(self) -> None:
        """Wait until all earlier events are delivered. In a listener, return at once."""
        self._announcer.flush()

    def paused(self) -> AbstractContextManager[None]:
        """A context in which no vCPU runs. Devices continue to serve their requests.

        It is for a short look at the guest. It causes no event, and it nests
        with itself and with :meth:`pause`.
        """
        return self._vcpus.paused()

    def still(self) -> AbstractContextManager[None]:
        """A context in which no vCPU runs, and no disk executes anything; without an event."""
        return self._control.still(STOP_SECONDS)

    @property
    def failed(self) -> bool:
        """An error of a disk has stopped the guest, or is about to."""
        return self._control.failed

    def stand(self, failed: bool) -> None:
        """The machine is at a saved moment, at which it was :attr:`failed` or not.

        Only within :meth:`still`, or before the start.
        """
        self._control.put_back(failed)
        if failed and not self._announcer.heard:
            from pykvm.machine.disk_reports import failure

            errors = [(disk.name, disk.last_error) for disk in self.disks if disk.last_error]
            self.finish(failure(*errors[0]) if errors else Outcome.error("a disk had failed"))

    # -- the disks -------------------------------------------------------

    def disk_reports(self, name: str) -> "DiskReports":
        """The receiver of the reports of a disk called ``name``."""
        from pykvm.machine.disk_reports import DiskReports

        return DiskReports(
            name, self._announcer, self._control, self._end, self.finish, self._failed
        )


def _until(deadline: float | None, pause: float) -> float:
    """The seconds to wait: ``pause``, but not beyond ``deadline``."""
    return pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))
