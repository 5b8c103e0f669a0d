"""One command in the bundled guest, through its agent, from the machine's start to its end."""

import os
import threading
import time
from collections.abc import Callable

from pykvm.agent.protocol import ENTROPY_BYTES, RunRequest
from pykvm.agent.requests import Exit
from pykvm.errors import PykvmError, UsageError
from pykvm.forms import refused
from pykvm.host.threads import start
from pykvm.lean.records import record, replace
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Final
from pykvm.machine.agent_link import connect
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_state import RunState

if TYPE_CHECKING:
    from pathlib import Path

CAPTURE_BYTES = 64 << 20
"""The most bytes that are kept of each stream, so that no guest fills the host's memory."""
POWER_OFF_SECONDS = 10.0
"""The longest time between two disk requests after the command has ended, while the guest writes
back its caches and unmounts. A guest that makes no request for this long is ended. The time during
which the guest is stopped does not count."""
_WAYS: Final = {
    OutcomeKind.POWER_OFF: "powered off",
    OutcomeKind.RESET: "was reset",
    OutcomeKind.HALTED: "halted",
}

Sink = Callable[[bytes], None]


@record
class CommandResult:
    """A command that has run in a guest: its output, and how the run of the machine ended.

    If the command ended, ``outcome`` is POWER_OFF with the command's exit status, or with
    128 + N if signal N ended it. Any other kind names the event that ended the run first: a
    panic, the timeout, an I/O error. ``stdout`` and ``stderr`` are the bytes that the command
    wrote until then.
    """

    outcome: Outcome
    stdout: bytes
    stderr: bytes

    @property
    def status(self) -> int:
        """``outcome.status``, as of ``pykvm boot --exec``: 0 if the command succeeded."""
        return self.outcome.status


def run_command(
    machine: Machine, command: str | bytes, *, stdin: bytes = b"", timeout: float | None = None
) -> CommandResult:
    """Start ``machine``, run ``command`` in its guest by ``/bin/sh -c``, and wait for the end.

    The configuration of ``machine`` needs ``agent=True`` and a ``guest`` that has pykvm's
    agent, as the bundled one does. The command gets the bytes of ``stdin`` as its standard
    input. When the command has ended, the guest writes back its caches, unmounts its
    filesystems and powers off: a machine runs one command. After ``timeout`` seconds, the boot
    included, the run ends with TIMEOUT; None means no limit.

    A command that fails and a guest that crashes raise no exception: the result tells of them.
    UsageError if the machine has no agent or has been started, and if the command is longer than
    128 KiB or holds a NUL byte.
    """
    if not isinstance(machine, Machine):
        raise refused("machine", machine, "give a Machine")
    if not isinstance(command, str | bytes):
        raise refused("command", command, "give a string")
    if not isinstance(stdin, bytes):
        raise refused("stdin", stdin, "give bytes")
    if machine.config.guest is None or not machine.config.agent:
        raise UsageError(
            "the guest of this machine has no agent",
            "configure it with guest='guest' and agent=True",
        )
    if machine.status is not RunState.PRELAUNCH:
        raise UsageError("this machine has been started", "make a new one for each command")
    run = CommandRun(machine, os.fsencode(command))
    run.stdin(stdin)
    run.stdin_eof()
    outcome = run.run(timeout)
    return CommandResult(outcome, bytes(run.captured["stdout"]), bytes(run.captured["stderr"]))


def save_booted(
    config: MachineConfig,
    folder: "Path | str",
    timeout: float | None = None,
    watch: Callable[[Machine], object] = lambda machine: None,
) -> None:
    """Boot the guest of ``config`` until its agent answers, and save it as the new ``folder``.

    ``watch`` gets the machine before it runs, for instance to finish it when a signal arrives.

    ``config`` needs ``agent=True``. Its disks and its trace are left out: give them to the
    machines that begin from the snapshot. UsageError if the guest has no agent; SnapshotError;
    BootFailed if the agent does not answer within ``timeout`` seconds, or the run ends before.
    """
    from pathlib import Path

    from pykvm.machine.snapshot import check_can_be_kept
    from pykvm.snapshot.writing import check_place

    if config.guest is None or not config.agent:
        raise UsageError(
            "the guest has no agent, which says when it has booted",
            "configure guest='guest' and agent=True",
        )
    check_can_be_kept(config)
    check_place(Path(folder))
    with Machine(replace(config, disks=(), trace=None)) as machine:
        watch(machine)
        saver = _Saver(machine, folder)
        try:
            outcome = machine.run(timeout)
        finally:
            machine.finish(Outcome.quit())
            saver.join()
    saver.check(outcome)


class BootFailed(PykvmError):
    """A guest ended before its agent answered; ``outcome`` is that of its run."""

    def __init__(self, reason: str, outcome: Outcome) -> None:
        super().__init__(
            f"the guest did not boot: {reason}",
            "boot it without a snapshot, and look at its console",
        )
        self.reason = reason
        self.outcome = outcome
        self.exit_status = outcome.status or self.exit_status


class _Saver:
    """Saves ``machine`` when its agent has answered, and ends the run; its client's events."""

    def __init__(self, machine: Machine, folder: "Path | str") -> None:
        self.saved = False
        self.failure = ""
        self._machine = machine
        self._folder = folder
        self._error: BaseException | None = None
        # Not the vCPU's thread, which reports the agent's word: it has to stop for the snapshot.
        self._thread = threading.Thread(target=self._save, name="snapshot", daemon=True)
        self._client = connect(machine, self)

    def join(self) -> None:
        """Wait for the end of the attempt, if there was one."""
        if self._thread.ident is not None:
            self._thread.join()

    def check(self, outcome: Outcome) -> None:
        """PykvmError or SnapshotError unless the run, which ended with ``outcome``, was saved."""
        if self._error is not None:
            raise self._error
        if self.saved and outcome.kind is OutcomeKind.QUIT:
            return
        reason = self.failure or outcome.reason or _WAYS.get(outcome.kind, "the run ended")
        raise BootFailed(reason, outcome)

    def _save(self) -> None:
        try:
            self._machine.save(self._folder)
            self.saved = True
        except BaseException as error:
            self._error = error
        finally:
            self._machine.finish(Outcome.quit())

    # ClientEvents and DoneEvents, from a vCPU's thread.

    def ready(self) -> None:
        """The guest has booted."""
        self._client.settle(self)

    def done(self, mode: int) -> None:
        """The agent has settled."""
        start(self._thread, "saving the guest")

    def failed(self, reason: str) -> None:
        """The agent does not make sense."""
        self.failure = f"the guest's agent failed: {reason}"
        self._machine.finish(Outcome.error(self.failure))


class CommandRun:
    """Runs one command, then makes the guest power off. Its client's events, and the command's.

    ``stdout`` and ``stderr`` get the command's output, in a vCPU's thread; the guest waits while
    they block. Without them, ``captured`` keeps the output, by the same names. ``ready`` is
    called when the agent has answered. ``say`` gets sentences for the user about the end.

    ``stdin(data)`` sends input, ``stdin_eof()`` ends it, and ``on_room`` is called when there is
    room again: see CommandHandle.stdin.
    """

    def __init__(
        self,
        machine: Machine,
        command: bytes,
        *,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        ready: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """UsageError if no guest could run ``command``."""
        self.captured = {"stdout": bytearray(), "stderr": bytearray()}
        self._machine = machine
        self._stdout = stdout or self._capture("stdout")
        self._stderr = stderr or self._capture("stderr")
        self._tell_ready = ready
        self._say = say
        self._ready = False
        self._ended: Outcome | None = None
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None
        self.on_room: Callable[[], None] = lambda: None
        self._client = connect(machine, self)
        self._handle = self._client.run(RunRequest(command), self)
        self.stdin = self._handle.stdin
        self.stdin_eof = self._handle.stdin_eof

    def run(self, timeout: float | None) -> Outcome:
        """Run the machine to its end, at most ``timeout`` seconds; return the outcome.

        Once the command has ended, its status counts, in whatever way the guest then ends.
        Before, the guest's own end counts, because the command may cause it, as ``reboot`` does.
        A guest that ends before it can run the command has failed.
        """
        machine = self._machine
        if machine.restored:
            self._client.wake(time.time_ns(), os.urandom(ENTROPY_BYTES), machine.unseen_disks)
        try:
            outcome = machine.run(timeout)
        finally:
            self._over.set()
            if self._watcher is not None:
                self._watcher.join()
        if self._ended and outcome.kind in _WAYS:
            return self._ended
        if not self._ready and outcome.status == 0 and outcome.kind in _WAYS:
            way = _WAYS[outcome.kind]
            return Outcome.error(f"the guest {way} before it could run the command")
        if outcome.kind in (OutcomeKind.RESET, OutcomeKind.HALTED):
            self._say(f"the guest {_WAYS[outcome.kind]} before the command ended")
        return outcome

    # ClientEvents and RunEvents, from a vCPU's thread.

    def ready(self) -> None:
        """The agent runs."""
        self._ready = True
        self._machine.timings.mark("agent ready")
        self._tell_ready()

    def stdout(self, data: bytes) -> None:
        """The command's standard output."""
        self._stdout(data)

    def stderr(self, data: bytes) -> None:
        """The command's standard error."""
        self._stderr(data)

    def room(self) -> None:
        """The command's input may go on."""
        self.on_room()

    def exited(self, exit: Exit) -> None:
        """The command ended: tell the guest to power off, and watch that it does."""
        self._machine.timings.mark("command ended")
        self._ended = outcome = Outcome.power_off(exit.shell_status)
        watcher = threading.Thread(target=self._watch, args=(outcome,), name="power-off")
        watcher.daemon = True
        start(watcher, "waiting for the guest to power off")
        self._watcher = watcher
        self._client.power_off(outcome.status)

    def failed(self, reason: str) -> None:
        """The command did not start, or the agent broke the protocol."""
        self._machine.finish(Outcome.error(f"the guest's agent failed: {reason}"))

    def _capture(self, name: str) -> Sink:
        kept = self.captured[name]

        def take(data: bytes) -> None:
            if len(kept) + len(data) <= CAPTURE_BYTES:
                kept.extend(data)
                return
            limit = f"{CAPTURE_BYTES >> 20} MiB, the most that is kept"
            self._machine.finish(Outcome.error(f"the command's {name} is longer than {limit}"))

        return take

    # In a separate thread, once the command has ended.

    def _watch(self, outcome: Outcome) -> None:
        """End the run if the guest neither powers off nor makes disk requests."""
        before = self._activity()
        while not self._over.wait(POWER_OFF_SECONDS):
            now = self._activity()
            stopped = self._machine.status in (RunState.PAUSED, RunState.IO_ERROR)
            if before == now and not stopped:
                self._say("the guest does not power off; its filesystems may still be mounted")
                self._machine.finish(outcome)
                return
            before = now

    def _activity(self) -> Any:
        """A value that changes with each disk request and each resume."""
        disks = self._machine.statistics()["disks"]
        return self._machine.resumes, [{**disk, "idle_time_ns": 0} for disk in disks]
