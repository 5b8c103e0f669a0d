"""The guest's console on standard input and output."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

from pykvm.cli.boot.streams import InputPump, OutputWriter, ScriptInput, output_failure
from pykvm.cli.say import STDERR, STDIN, STDOUT, say
from pykvm.lean.typing_names import TYPE_CHECKING, Protocol
from pykvm.machine.config import ConsoleMode
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.cli.boot.escape_keys import Key
    from pykvm.cli.boot.terminal import RawTerminal
    from pykvm.cli.boot.waiting_line import WaitingLine
    from pykvm.cli.boot.window_size import WindowSize


class Session(Protocol):
    """One way to use a machine that is built but not yet started."""

    output: dict[str, bytes]
    """The output that was captured for ``--json`` instead of being printed, by stream."""
    has_keys: bool
    """True if pykvm's keys (Ctrl-a) work."""
    after_reset: Callable[[], None] | None
    """To be called when the machine was put back to a snapshot. None: it cannot be."""

    def say(self, text: str) -> None:
        """Tell the user something while the guest runs."""

    def run(self, timeout: float | None) -> Outcome:
        """Run the machine to its end."""

    def release(self) -> None:
        """The run is over: from now on drop output whose reader would make it wait."""


class ConsoleSession:
    """A Session that connects the terminal with the guest's console."""

    def __init__(
        self,
        stack: ExitStack,
        machine: Machine,
        *,
        bundled: bool,
        size: tuple[int, int] | None,
        json: bool,
        save_in: "Path | None" = None,
    ) -> None:
        """``bundled``: the guest follows guest/README.md. ``size``: its rows and columns.

        ``save_in``: the folder for snapshots of the running guest.
        """
        self._exact = bundled and machine.config.console is ConsoleMode.PIPE
        self._waiting = waiting_line()
        self.output: dict[str, bytes] = {}
        self._machine = machine
        writer = OutputWriter(STDERR if json else STDOUT, self._output_failed)
        self._writer = stack.enter_context(writer)
        self.has_keys = os.isatty(STDIN)
        self._terminal = _terminal() if self.has_keys else None
        self._actions = _actions(machine) if self.has_keys else {}
        if self.has_keys:
            self._actions[_save_key()] = self._saving(stack, save_in)
        # A restored guest has the size of the terminal of then.
        size = None if machine.restored else size
        self._window = _window(machine, size) if self.has_keys and bundled else None
        has_agent = bundled and machine.config.agent
        script = not self.has_keys
        self._wake = _waking(machine, self._window, self.say, script) if has_agent else None
        self.after_reset: Callable[[], None] | None = self._wake or (lambda: None)

    def show(self, data: bytes) -> None:
        """Show ``data``, which the guest has printed."""
        if self._waiting:
            self._waiting.end()
        self._writer.write(data)

    def release(self) -> None:
        """See Session."""
        if self._waiting:
            self._waiting.end()
        self._writer.release()

    def say(self, text: str) -> None:
        """See Session."""
        if self._waiting:
            self._waiting.end()
        say(text, raw=self._terminal is not None and self._terminal.raw and os.isatty(STDERR))

    def run(self, timeout: float | None) -> Outcome:
        """See Session."""
        with ExitStack() as stack:
            pump = self._input(stack)
            self._machine.board.console.on_room = pump.wake
            stack.enter_context(pump)
            if self._window:
                stack.enter_context(self._window.watched(pump.wake))
            if self._waiting:
                stack.callback(self._waiting.end)
                self._waiting.start()
            if self._wake and self._machine.restored:
                self._wake()
            return self._machine.run(timeout)

    def _input(self, stack: ExitStack) -> InputPump:
        feed = self._machine.board.console.feed
        terminal = self._terminal
        if terminal and stack.enter_context(terminal).is_terminal:
            return InputPump(
                STDIN,
                feed,
                self._terminal_gone,
                on_key=self._key,
                terminal=terminal,
                woken=self._window.look if self._window else lambda: None,
            )
        script = ScriptInput(feed, exact=self._exact)
        return InputPump(STDIN, script.feed, script.end)

    def _saving(self, stack: ExitStack, folder: "Path | None") -> Callable[[], None]:
        """The action of Ctrl-a w."""
        if folder is None:
            return lambda: self.say("start pykvm with --save-in DIR to save the guest by Ctrl-a w")
        from pykvm.cli.boot.saving import Saver

        saver = Saver(self._machine, folder, self.say)
        stack.callback(saver.close)
        return saver.save

    def _key(self, key: "Key") -> None:
        if action := self._actions.get(key):
            action()
        else:
            self._writer.write(_help().encode())

    def _terminal_gone(self) -> None:
        self._machine.finish(Outcome.signalled(signal.SIGHUP))

    def _output_failed(self, error: OSError) -> None:
        self._machine.finish(output_failure(error))


# These modules are imported only for terminals, because start-up time counts. They are imported
# before the guest runs, because the sandbox forbids later imports.


def _terminal() -> "RawTerminal":
    from pykvm.cli.boot.terminal import RawTerminal

    return RawTerminal(STDIN)


def _window(machine: Machine, size: tuple[int, int] | None) -> "WindowSize":
    from pykvm.cli.boot.window_size import WindowSize
    from pykvm.machine.agent_link import connect

    return WindowSize(STDIN, size, lambda window: connect(machine, window))


def _waking(
    machine: Machine, window: "WindowSize | None", say: Callable[[str], None], script: bool
) -> Callable[[], None]:
    """Sets the clock of a restored guest, and has it look for its disks and start a shell."""
    from pykvm.agent.protocol import ENTROPY_BYTES
    from pykvm.cli.boot.console_shell import ConsoleShell, wants_shell
    from pykvm.cli.boot.window_size import Unheard
    from pykvm.machine.agent_link import connect

    def wake() -> None:
        # A client knows one conversation, and a guest that was put back begins a new one.
        client = window.reconnected() if window else connect(machine, Unheard())
        client.wake(time.time_ns(), os.urandom(ENTROPY_BYTES), machine.unseen_disks)
        if wants_shell(machine):
            ConsoleShell(client, say, script=script)

    return wake


def waiting_line() -> "WaitingLine | None":
    """A line that says that the guest is booting; None if standard error is no terminal."""
    if not os.isatty(STDERR):
        return None
    from pykvm.cli.boot.waiting_line import WaitingLine

    return WaitingLine()


def _actions(machine: Machine) -> "dict[Key, Callable[[], None]]":
    from pykvm.cli.boot.escape_keys import Key

    return {
        Key.QUIT: lambda: machine.finish(Outcome.quit("ended by Ctrl-a x")),
        Key.STOP: machine.request_pause,
        Key.CONTINUE: machine.request_resume,
    }


def _save_key() -> "Key":
    from pykvm.cli.boot.escape_keys import Key

    return Key.SAVE


def _help() -> str:
    from pykvm.cli.boot.escape_keys import HELP

    return HELP
