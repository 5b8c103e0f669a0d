"""The guest's console on standard input and output."""

import os
import signal
from contextlib import ExitStack
from typing import Protocol

from pykvm.cli.keys import HELP, Key
from pykvm.cli.say import STDERR, STDIN, STDOUT, say
from pykvm.cli.streams import InputPump, OutputWriter, ScriptInput, output_failure
from pykvm.cli.terminal import RawTerminal
from pykvm.machine.machine import Machine
from pykvm.platform.outcome import Outcome


class Session(Protocol):
    """One way to use a machine that is built and not started yet."""

    output: dict[str, bytes]
    """What was captured instead of being printed, for ``--json``."""
    has_keys: bool
    """Whether the user has our keys (Ctrl-a)."""

    def say(self, text: str) -> None:
        """Tell the user something while the guest runs."""
        ...

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
        self._terminal = RawTerminal(STDIN)
        self.has_keys = os.isatty(STDIN)

    def show(self, data: bytes) -> None:
        """The guest prints ``data``."""
        self._writer.write(data)

    def release(self) -> None:
        """See Session."""
        self._writer.release()

    def say(self, text: str) -> None:
        """See Session."""
        say(text, raw=self._terminal.raw and os.isatty(STDERR))

    def run(self, timeout: float | None) -> Outcome:
        """See Session."""
        console = self._machine.board.console
        with self._terminal as terminal:
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
        elif key is Key.STOP:
            self._machine.request_pause()
        elif key is Key.CONTINUE:
            self._machine.request_resume()
        else:
            self._writer.write(HELP.encode())

    def _terminal_gone(self) -> None:
        self._machine.finish(Outcome.signalled(signal.SIGHUP))

    def _output_failed(self, error: OSError) -> None:
        self._machine.finish(output_failure(error))
