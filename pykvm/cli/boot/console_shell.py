"""A shell on the console of a restored guest that has no program there, started by its agent."""

from collections.abc import Callable

from pykvm.agent.client import AgentClient
from pykvm.agent.protocol import RunRequest
from pykvm.agent.requests import Exit
from pykvm.machine.config import ConsoleMode
from pykvm.machine.machine import Machine

_SHELL = b"exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1"
_SCRIPT = b"exec </dev/ttyS0 >/dev/ttyS0 2>&1; stty -echo; PS1= PS2= exec sh"
"""Without echo the shell reads whole lines. Otherwise it edits each line in a raw mode, in which a
Ctrl-D that has arrived before does not end the input."""


def wants_shell(machine: Machine) -> bool:
    """The guest was restored, can start a shell, and has no program on its console."""
    return machine.restored and machine.config.console is ConsoleMode.NONE


class ConsoleShell:
    """See the module. The end of the shell powers the guest off. Its RunEvents.

    ``script``: the input is a script, not what somebody types.
    """

    def __init__(self, client: AgentClient, say: Callable[[str], None], *, script: bool) -> None:
        self._client = client
        self._say = say
        client.run(RunRequest(_SCRIPT if script else _SHELL, stdin=False), self)

    def stdout(self, data: bytes) -> None:
        """The shell writes to the console."""

    def stderr(self, data: bytes) -> None:
        """The same."""

    def room(self) -> None:
        """It reads from there, too."""

    def exited(self, exit: Exit) -> None:
        """As with the shell of a guest that boots."""
        self._client.power_off(0)

    def failed(self, reason: str) -> None:
        """There is a console without a shell."""
        self._say(f"no shell on the guest's console: {reason}")
