"""The guest's console on standard input and output."""

import signal
from contextlib import ExitStack
from typing import Protocol

from pykvm.cli.keys import HELP, Key
from pykvm.cli.say import STDERR, STDIN, STDOUT
from pykvm.cli.streams import InputPump, OutputWriter, ScriptInput, output_failure
from pykvm.cli.terminal import RawTerminal
from pykvm.machine.machine import Machine
from pykvm.platform.outcome import Outcome


class Session(Protocol):
    """One way to use a machine that is built and not started yet."""

    output: dict[str, bytes]
    """What was captured instead of being printed, for ``--json``."""

    def run(self, timeout: float | None) -> Outcome:
        """Run the machine to its end."""
        ...

    def release(self) -> None:
        """Drop output that would have to wait from now on: the run is over."""
        ...


class ConsoleSession:
    """A Session: a shell, or whatever the guest has on its console."""

    def __init__(self, stack: ExitStack, machine: Machine, *, json: bool) -> None:
        self.output: dict[str, bytes] = {}
        self._machine = machine
        writer = OutputWriter(STDERR if json else STDOUT, self._output_failed)
        self._writer = stack.enter_context(writer)

    def show(self, data: bytes) -> None:
        """The guest prints ``data``."""
        self._writer.write(data)

    def release(self) -> None:
        """See Session."""
        self._writer.release()

    def run(self, timeout: float | None) -> Outcome:
        """See Session."""
        console = self._machine.board.console
        with RawTerminal(STDIN) as terminal:
            if terminal.is_terminal:
                pump = InputPump(
                    STDIN, console.feed, self._terminal_gone, on_key=self._key, terminal=terminal
                )
            else:
                script = ScriptInput(console.feed)
                pump = InputPump(STDIN, script.feed, script.end)
            console.on_room = pump.wake
            with pump:
                return self._machine.run(timeout)

    def _key(self, key: Key) -> None:
        if key is Key.QUIT:
            self._machine.finish(Outcome.quit())
        else:
            self._writer.write(HELP.encode())

    def _terminal_gone(self) -> None:
        self._machine.finish(Outcome.signalled(signal.SIGHUP))

    def _output_failed(self, error: OSError) -> None:
        self._machine.finish(output_failure(error))
