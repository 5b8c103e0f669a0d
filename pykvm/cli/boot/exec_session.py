"""``--exec``: one command in the guest, run by its agent, on pykvm's standard streams."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack

from pykvm.agent.protocol import MAX_COMMAND
from pykvm.cli.boot.console_session import waiting_line
from pykvm.cli.boot.streams import InputPump, OutputWriter, output_failure
from pykvm.cli.say import STDERR, STDIN, STDOUT, say
from pykvm.errors import UsageError
from pykvm.host.threads import start
from pykvm.machine.command import CommandRun
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome

AGENT_SECONDS = 60.0
"""After this time without an answer from the agent, a message says that the run waits for it."""


def check_command(command: str, guest: str | None) -> None:
    """UsageError if ``guest`` cannot run ``command``. ``guest`` is None for a kernel file."""
    if guest is None:
        raise UsageError(
            "--exec needs a guest that contains pykvm's agent", "use 'pykvm boot guest --exec CMD'"
        )
    if len(os.fsencode(command)) > MAX_COMMAND:
        raise UsageError(
            f"the command is longer than {MAX_COMMAND} bytes",
            "pass a script on standard input: --exec sh <script",
        )


class CommandSession:
    """See Session. With ``json`` the command's output is captured instead of being printed."""

    def __init__(self, stack: ExitStack, machine: Machine, command: str, *, json: bool) -> None:
        self.output: dict[str, bytes] = {}
        self.has_keys = False
        self.after_reset: Callable[[], None] | None = None
        self._machine = machine
        self._json = json
        self._out = stack.enter_context(OutputWriter(STDOUT, self._output_failed))
        self._err = stack.enter_context(OutputWriter(STDERR, self._output_failed))
        self._command = CommandRun(
            machine,
            os.fsencode(command),
            stdout=None if json else self._out.write,
            stderr=None if json else self._err.write,
            ready=self._agent_answered,
            say=say,
        )
        self._waiting = waiting_line()
        self._timer = threading.Timer(AGENT_SECONDS, self._no_agent)
        self._timer.daemon = True

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
        # The timer's thread starts only here, because no thread may run before the sandbox closes.
        start(self._timer, "waiting for the guest's agent")
        try:
            if self._waiting:
                self._waiting.start()
            return self._run(timeout)
        finally:
            self._end_waiting()
            self._timer.cancel()
            if self._json:
                self.output |= {name: bytes(data) for name, data in self._command.captured.items()}

    def _run(self, timeout: float | None) -> Outcome:
        command = self._command
        if os.isatty(STDIN):
            # A command does not get the terminal, so that Ctrl-C still ends the run.
            command.stdin_eof()
            return command.run(timeout)
        pump = InputPump(STDIN, command.stdin, command.stdin_eof)
        command.on_room = pump.wake
        with pump:
            return command.run(timeout)

    def _agent_answered(self) -> None:
        self._end_waiting()
        self._timer.cancel()

    def _end_waiting(self) -> None:
        if self._waiting:
            self._waiting.end()

    def _no_agent(self) -> None:
        self.say(
            f"the guest's agent has not answered for {AGENT_SECONDS:g} seconds; "
            "if the guest has none, press Ctrl-C (or give --timeout S the next time)"
        )

    def _output_failed(self, error: OSError) -> None:
        self._machine.finish(output_failure(error))
