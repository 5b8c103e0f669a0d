"""What a run does with its standard streams: a console on a terminal, or one command."""

import os
import signal
import threading
from contextlib import ExitStack
from typing import Protocol

from pykvm.cli.keys import HELP, Key
from pykvm.cli.say import STDERR, STDOUT
from pykvm.cli.streams import InputPump, OutputWriter, ScriptInput, output_failure
from pykvm.cli.terminal import RawTerminal
from pykvm.machine.machine import Machine
from pykvm.platform.agent import AgentClient
from pykvm.platform.outcome import Outcome

STDIN = 0
POWER_OFF_SECONDS = 10.0
"""How long the guest may take to unmount its filesystems once the command has ended."""


class Session(Protocol):
    """One way to use a machine."""

    output: dict[str, bytes]
    """What was captured instead of being printed, for ``--json``."""

    def run(self, machine: Machine, timeout: float | None) -> Outcome:
        """Run ``machine`` to its end."""
        ...


class ConsoleSession:
    """The guest's console on standard input and output."""

    def __init__(self, stack: ExitStack, *, json: bool) -> None:
        self.output: dict[str, bytes] = {}
        self._machine: Machine | None = None
        self._writer = stack.enter_context(
            OutputWriter(STDERR if json else STDOUT, self._output_failed)
        )
        self._terminal = RawTerminal(STDIN)

    def show(self, data: bytes) -> None:
        """The guest prints ``data``."""
        self._writer.write(data)

    def run(self, machine: Machine, timeout: float | None) -> Outcome:
        """See Session."""
        self._machine = machine
        console = machine.board.console
        with self._terminal as terminal:
            if terminal.is_terminal:
                pump = InputPump(
                    STDIN, console.feed, self._terminal_gone, on_key=self._key, terminal=terminal
                )
            else:
                script = ScriptInput(console.feed)
                pump = InputPump(STDIN, script.feed, script.end)
            console.on_room = pump.wake
            machine.on_end = self._writer.release
            with pump:
                return machine.run(timeout)

    def _key(self, key: Key) -> None:
        assert self._machine is not None, "keys come only while it runs"
        if key is Key.QUIT:
            self._finish(Outcome.quit())
        else:
            self._writer.write(HELP.encode())

    def _terminal_gone(self) -> None:
        self._finish(Outcome.signalled(signal.SIGHUP))

    def _output_failed(self, error: OSError) -> None:
        self._finish(output_failure(error))

    def _finish(self, outcome: Outcome) -> None:
        if self._machine is not None:
            self._machine.finish(outcome)


class CommandSession:
    """One command in the guest, through its agent, on our standard streams."""

    def __init__(self, stack: ExitStack, command: str, *, json: bool) -> None:
        self.output: dict[str, bytes] = {}
        self._command = os.fsencode(command)
        self._captured = {"stdout": bytearray(), "stderr": bytearray()} if json else None
        self._machine: Machine | None = None
        self._client: AgentClient | None = None
        self._grace: threading.Timer | None = None
        self._out = stack.enter_context(OutputWriter(STDOUT, self._output_failed))
        self._err = stack.enter_context(OutputWriter(STDERR, self._output_failed))

    def run(self, machine: Machine, timeout: float | None) -> Outcome:
        """See Session."""
        self._machine = machine
        channel = machine.board.channel
        self._client = client = AgentClient(channel.feed, self)
        machine.on_channel = client.received
        channel.on_room = client.room
        machine.on_end = self._release
        client.execute(self._command)
        try:
            if os.isatty(STDIN):
                # A command does not take the terminal: Ctrl-C shall still end the run.
                client.stdin_eof()
                return machine.run(timeout)
            pump = InputPump(STDIN, client.stdin, client.stdin_eof)
            client.on_room = pump.wake
            with pump:
                return machine.run(timeout)
        finally:
            if self._grace is not None:
                self._grace.cancel()
            if self._captured is not None:
                self.output.update({name: bytes(data) for name, data in self._captured.items()})

    # AgentEvents, from a vCPU's thread.

    def ready(self) -> None:
        """The agent runs."""
        if self._machine is not None:
            self._machine.timings.mark("agent ready")

    def stdout(self, data: bytes) -> None:
        """The command's standard output."""
        if self._captured is not None:
            self._captured["stdout"] += data
        else:
            self._out.write(data)

    def stderr(self, data: bytes) -> None:
        """The command's standard error."""
        if self._captured is not None:
            self._captured["stderr"] += data
        else:
            self._err.write(data)

    def exited(self, status: int) -> None:
        """The command ended; have the guest unmount and power off, but not wait for it for ever."""
        assert self._machine is not None and self._client is not None
        self._machine.timings.mark("command ended")
        outcome = Outcome.power_off(status)
        self._grace = threading.Timer(POWER_OFF_SECONDS, self._machine.finish, [outcome])
        self._grace.daemon = True
        self._grace.start()
        self._client.power_off(outcome.status)

    def failed(self, reason: str) -> None:
        """The command did not start, or the agent does not make sense."""
        assert self._machine is not None
        self._machine.finish(Outcome.error(f"the guest's agent failed: {reason}"))

    def _output_failed(self, error: OSError) -> None:
        if self._machine is not None:
            self._machine.finish(output_failure(error))

    def _release(self) -> None:
        self._out.release()
        self._err.release()
