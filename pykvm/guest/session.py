"""One run of a guest's machine, from its start to its end, and the end of all that waits for it.

A thread waits for the end of the run, and tells those who wait. It keeps the machine, whose disks
can still be read, until somebody lets go of the session. It alone closes the machine: the garbage
collector may let go of a session in any thread, such as a vCPU's, which cannot close a machine.
"""

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pykvm.errors import UsageError
from pykvm.guest.console import PUT_BACK, Console
from pykvm.guest.errors import GuestDied, GuestError, GuestTimeout
from pykvm.guest.waiting import Deadline, Limit
from pykvm.host.threads import start
from pykvm.machine.events import BlockIoError, Event, Resume, Stop
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome
from pykvm.machine.run_state import RunState

if TYPE_CHECKING:
    from pykvm.agent.client import AgentClient
    from pykvm.machine.snapshot import MachineSnapshot


class Session:
    """A machine that runs: ``machine``, and ``client`` if its guest has an agent.

    ``console`` gets the guest's text. The session closes the machine.
    """

    def __init__(self, machine: Machine, console: Console, limit: Limit) -> None:
        self.machine = machine
        self.deadline = limit.deadline
        self.console = console
        self.client: AgentClient | None = None
        self.answered = False
        self.woken = False
        self.outcome: Outcome | None = None
        self._bug: BaseException | None = None
        self._untold: BaseException | None = None  # no exception has told of it yet
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._stopping: BlockIoError | None = None
        self._stopped: BlockIoError | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guest", daemon=True)
        # With a listener, an error whose policy says stop does not end the run.
        machine.listen(self._event)
        console._begin(machine.board.console.feed, self.late)
        machine.console = console._take
        if machine.config.agent and machine.config.guest is not None:
            self.connect()

    def connect(self) -> None:
        """Begin the conversation with the agent, at the start or after a reset."""
        from pykvm.machine.agent_link import connect

        if self.client is not None:
            self.client.close(PUT_BACK)
        self.answered = False
        self.client = connect(self.machine, self)

    def start(self, now_ns: int, entropy: bytes | None) -> None:
        """Let the guest run; one that does not boot gets this time, and this entropy if any."""
        try:
            self._wake(now_ns, entropy)
            self.machine.start()
            if self.machine.failed:  # a disk's error had stopped the guest that was saved
                self.machine.resume()
            start(self._thread, "a guest")
        except BaseException:
            self.machine.close()
            raise
        _open.add(self)

    def put_back(self, saved: "MachineSnapshot", now_ns: int, entropy: bytes | None) -> None:
        """Put the machine, which runs or is stopped, back to ``saved``, and let it run.

        UsageError or SnapshotError if it cannot go back; it then goes on as it was, unless the
        snapshot turned out to make no sense.
        """
        machine = self.machine
        ran = machine.status is RunState.RUNNING
        self.pause()
        try:
            saved.check_reset(machine)
        except BaseException:
            if ran:
                machine.resume()
            raise
        # Also a guest that an error had stopped runs only when its agent has been told.
        with self.in_time(), machine.paused():
            if self.client is not None:
                # No other thread writes to the guest's memory while that goes back.
                self.client.close(PUT_BACK)
            machine.reset(saved)
            self.console._begin(machine.board.console.feed, self.late)
            if self.client is not None:
                self.connect()
            self._wake(now_ns, entropy)
        self.resume()

    def pause(self) -> None:
        """Stop the guest. GuestTimeout."""
        with self.in_time():
            self.machine.pause()

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Turns the error of a vCPU that does not stop into GuestTimeout."""
        try:
            yield
        except TimeoutError as error:
            raise self.late(str(error)) from None

    def resume(self) -> None:
        """Let the guest run on; what listeners hear of the stop before, they have heard."""
        self.machine.resume()
        self.machine.flush_events()

    def snapshot(self) -> "MachineSnapshot":
        """A snapshot of the machine."""
        machine = self.machine
        if self.client is None:
            with self.in_time():
                return machine.snapshot()
        # No other thread writes to the guest's memory meanwhile. A vCPU's thread may wait for the
        # client's lock, so it stops first.
        with self.in_time(), machine.paused(), self.client.lock:
            return machine.snapshot()

    def wake_again(self, now_ns: int, entropy: bytes | None) -> None:
        """Give these to a guest that has booted, as to one that wakes up; it answers once more."""
        if self.client is not None:
            self.pause()
            self.connect()
            self.client.wake(now_ns, entropy, False)
            self.machine.resume()
            self.woken = True

    def _wake(self, now_ns: int, entropy: bytes | None) -> None:
        if self.client is not None and self.machine.restored:
            self.client.wake(now_ns, entropy, self.machine.unseen_disks)
            self.woken = True

    # -- ClientEvents, in a vCPU's thread ---------------------------------------

    def ready(self) -> None:
        """The agent has answered."""
        with self._changed:
            self.answered = True
            self._changed.notify_all()

    def failed(self, reason: str) -> None:
        """The conversation is over."""
        self.machine.finish(Outcome.error(f"the guest's agent failed: {reason}"))

    def _event(self, event: Event) -> None:
        """In the machine's thread for events."""
        with self._changed:
            if isinstance(event, BlockIoError) and event.error.stops:
                self._stopping = self._stopping or event
            elif isinstance(event, Stop):
                self._stopped = self._stopping
            elif isinstance(event, Resume):
                self._stopping = self._stopped = None
            self._changed.notify_all()

    # -- waiting ----------------------------------------------------------------

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until the guest's agent, if there is one, has answered. GuestDied, GuestTimeout."""
        with self._changed:
            while self.client is not None and not self.answered:
                if self.outcome is not None:
                    raise self.died("the wait for its agent")
                if not self._changed.wait(deadline.left):
                    raise self.late(f"the guest's agent has not answered {deadline.text}")

    def wait_end(self, deadline: Deadline) -> Outcome:
        """Wait for the end of the run. GuestTimeout. A bug in pykvm that ended it is raised."""
        with self._changed:
            while self.outcome is None:
                if not self._changed.wait(deadline.left):
                    raise self.late(f"the guest has not ended {deadline.text}")
        self._tell()
        return self.outcome

    def wait_stopped(self, deadline: Deadline) -> BlockIoError:
        """Wait until an I/O error has stopped the guest. GuestDied, GuestTimeout."""
        with self._changed:
            while self._stopped is None:
                if self.outcome is not None:
                    raise self.died("the wait for an I/O error")
                if not self._changed.wait(deadline.left):
                    raise self.late(f"no I/O error has stopped the guest {deadline.text}")
            return self._stopped

    def late(self, message: str, *details: tuple[str, str]) -> GuestTimeout:
        """The error of a wait that took too long; it tells if the guest is stopped."""
        hint = "give a longer timeout if that is not enough"
        if self.machine.status is RunState.PAUSED:
            message, hint = f"{message}: the guest is paused", "call resume()"
        elif self.machine.status is RunState.IO_ERROR:
            message, hint = f"{message}: an I/O error has stopped the guest", "call resume()"
        return GuestTimeout(message, self.console.tail(), *details, hint=hint)

    def died(self, during: str) -> GuestError:
        """The error of a call that the end of the run has ended."""
        outcome = self.outcome or self.machine.outcome
        assert outcome is not None, "the run is not over"
        error = GuestDied(outcome, self.console.tail(), during)
        error.__cause__, self._untold = self._bug, None
        return error

    def lost(self, reason: str, during: str) -> GuestError:
        """The error of a call that the agent's client has ended for ``reason``."""
        if self.machine.outcome is not None:
            return self.died(during)
        return GuestError(f"{during} failed: {reason}")

    def check_process(self) -> None:
        """UsageError in a process that was forked from the guest's own."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"this guest belongs to process {self._pid}, which forked this one",
                "start a guest in the process that uses it",
            )

    # -- the end ------------------------------------------------------------------

    def let_go(self) -> None:
        """End the run, and have the machine closed. For any thread; it does not wait."""
        if os.getpid() == self._pid:
            self.machine.finish(Outcome.quit("closed"))
            self._released.set()

    def close(self) -> None:
        """:meth:`let_go`, and wait until the machine is closed. May be repeated.

        Raises the exception of a bug that nobody has heard of.
        """
        if os.getpid() != self._pid:
            return
        self.let_go()
        if self._thread.ident is None:
            self.machine.close()
        elif self._thread is not threading.current_thread():
            self._thread.join()
            self._tell()

    def _tell(self) -> None:
        """Raise the exception of a bug, unless a call has done so."""
        error, self._untold = self._untold, None
        if error is not None:
            raise error

    def _watch(self) -> None:
        machine = self.machine
        try:
            outcome = machine.wait()
        except BaseException as error:
            self._bug = self._untold = error
            outcome = machine.outcome or Outcome.error(str(error))
        self._end(outcome)
        self._released.wait()
        try:
            machine.close()
        except BaseException as error:
            self._untold = error
        _open.discard(self)

    def _end(self, outcome: Outcome) -> None:
        with self._changed:
            self.outcome = outcome
            self._changed.notify_all()
        self.console._end(self.died)
        if self.client is not None:
            self.client.close("the guest has ended")


_open: set[Session] = set()
"""The sessions whose machines are not closed. They end before the interpreter does."""


def _close_all() -> None:
    """At the end of the interpreter."""
    sessions = list(_open)
    for session in sessions:
        session.let_go()
    for session in sessions:
        session.close()


atexit.register(_close_all)
