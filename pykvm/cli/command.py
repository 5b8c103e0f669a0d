"""``--exec``: one command in the guest, through its agent, on our standard streams."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pykvm.cli.say import STDERR, STDIN, STDOUT, say
from pykvm.cli.session import waiting_line
from pykvm.cli.streams import InputPump, OutputWriter, output_failure
from pykvm.errors import UsageError
from pykvm.machine.events import Event, Resume
from pykvm.machine.machine import Machine
from pykvm.machine.run_state import RunState
from pykvm.platform.agent import MAX_COMMAND, AgentClient
from pykvm.platform.outcome import Outcome, OutcomeKind
from pykvm.threads import start

AGENT_SECONDS = 60.0
"""After this long without a word from the agent, the user is told what the run waits for."""
CAPTURE_BYTES = 64 << 20
"""How much of each stream ``--json`` keeps: a guest that prints for ever must not fill us."""
POWER_OFF_SECONDS = 10.0
"""Once the command has ended, how long the guest may do without any disk request before it
powers off: it writes back what is cached and unmounts. While it is stopped does not count."""


def check_command(command: str, guest: str | None) -> None:
    """UsageError if ``guest``, None for a kernel file, cannot be asked to run ``command``."""
    if guest is None:
        raise UsageError(
            "--exec needs a guest with pykvm's agent in it", "use 'pykvm boot guest --exec CMD'"
        )
    if len(os.fsencode(command)) > MAX_COMMAND:
        raise UsageError(
            f"the command is longer than {MAX_COMMAND} bytes",
            "give the guest a script on standard input: --exec sh <script",
        )


class CommandSession:
    """See Session; also the AgentEvents of its client."""

    def __init__(self, stack: ExitStack, machine: Machine, command: str, *, json: bool) -> None:
        self.output: dict[str, bytes] = {}
        self.has_keys = False
        self._machine = machine
        self._captured = {"stdout": bytearray(), "stderr": bytearray()} if json else None
        self._out = stack.enter_context(OutputWriter(STDOUT, self._output_failed))
        self._err = stack.enter_context(OutputWriter(STDERR, self._output_failed))
        channel = machine.board.channel
        self._client = AgentClient(channel.feed, self)
        machine.channel = self._client.received
        channel.on_room = self._client.room
        self._client.execute(os.fsencode(command))
        self._waiting = waiting_line()
        self._ready = False
        self._ended: Outcome | None = None
        self._timer: threading.Timer | None = None
        self._resumes = 0
        self._stack = stack

    def release(self) -> None:
        """See Session."""
        self._end_waiting()
        self._out.release()
        self._err.release()

    def say(self, text: str) -> None:
        """See Session."""
        self._end_waiting()
        say(text)

    def run(self, timeout: float | None) -> Outcome:
        """See Session."""
        # Which starts a thread, and none may run before the process is confined.
        self._stack.callback(self._machine.listen(self._note))
        self._after(AGENT_SECONDS, self._no_agent)
        try:
            if self._waiting:
                self._waiting.start()
            outcome = self._run(timeout)
        finally:
            self._end_waiting()
            self._cancel()
            if self._captured is not None:
                self.output.update({name: bytes(data) for name, data in self._captured.items()})
        return self._judge(outcome)

    def _run(self, timeout: float | None) -> Outcome:
        client = self._client
        if os.isatty(STDIN):
            # A command does not take the terminal: Ctrl-C shall still end the run.
            client.stdin_eof()
            return self._machine.run(timeout)
        pump = InputPump(STDIN, client.stdin, client.stdin_eof)
        client.on_room = pump.wake
        with pump:
            return self._machine.run(timeout)

    def _judge(self, outcome: Outcome) -> Outcome:
        """The command's status counts, however the guest went down after it.

        While the command ran, the guest's own end counts: it may be what the
        command was for, as ``reboot`` is. A guest that ended before it could
        run the command has failed.
        """
        ways = {
            OutcomeKind.POWER_OFF: "powered off",
            OutcomeKind.RESET: "was reset",
            OutcomeKind.HALTED: "halted",
        }
        if self._ended and outcome.kind in ways:
            return self._ended
        if not self._ready and outcome.status == 0 and outcome.kind in ways:
            return Outcome.error(f"the guest {ways[outcome.kind]} before it could run the command")
        if outcome.kind in ways and outcome.kind is not OutcomeKind.POWER_OFF:
            say(f"the guest {ways[outcome.kind]} before the command ended")
        return outcome

    # AgentEvents, from a vCPU's thread.

    def ready(self) -> None:
        """The agent runs."""
        self._ready = True
        self._end_waiting()
        self._cancel()
        self._machine.timings.mark("agent ready")

    def stdout(self, data: bytes) -> None:
        """The command's standard output."""
        self._take("stdout", self._out, data)

    def stderr(self, data: bytes) -> None:
        """The command's standard error."""
        self._take("stderr", self._err, data)

    def exited(self, status: int) -> None:
        """The command ended; have the guest unmount and power off, but not wait for ever."""
        self._machine.timings.mark("command ended")
        self._ended = outcome = Outcome.power_off(status)
        self._after(POWER_OFF_SECONDS, self._still_on, outcome, self._activity())
        self._client.power_off(outcome.status)

    def failed(self, reason: str) -> None:
        """The command did not start, or the agent does not make sense."""
        self._machine.finish(Outcome.error(f"the guest's agent failed: {reason}"))

    def _take(self, name: str, writer: OutputWriter, data: bytes) -> None:
        if self._captured is None:
            writer.write(data)
        elif len(self._captured[name]) + len(data) <= CAPTURE_BYTES:
            self._captured[name] += data
        else:
            what = f"the command's {name} is more than the {CAPTURE_BYTES >> 20} MiB"
            self._machine.finish(Outcome.error(f"{what} that --json takes"))

    def _end_waiting(self) -> None:
        if self._waiting:
            self._waiting.end()

    # From a timer's thread.

    def _no_agent(self) -> None:
        self.say(
            f"no agent has answered in the guest for {AGENT_SECONDS:g} seconds; "
            "if it has none, end this with Ctrl-C (next time, --timeout S does so)"
        )

    def _still_on(self, outcome: Outcome, before: Any) -> None:
        now = self._activity()
        if before != now or self._machine.status in (RunState.PAUSED, RunState.IO_ERROR):
            self._after(POWER_OFF_SECONDS, self._still_on, outcome, now)
            return
        say("the guest does not power off; its filesystems may not be unmounted")
        self._machine.finish(outcome)

    def _activity(self) -> Any:
        """Something that changes with each disk request, and when the guest goes on."""
        disks = self._machine.statistics()["disks"]
        return self._resumes, [{**disk, "idle_time_ns": 0} for disk in disks]

    def _note(self, event: Event) -> None:
        if isinstance(event, Resume):
            self._resumes += 1

    def _after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._timer = threading.Timer(seconds, call, arguments)
        self._timer.daemon = True
        start(self._timer, "waiting for the guest's agent")

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _output_failed(self, error: OSError) -> None:
        self._machine.finish(output_failure(error))
