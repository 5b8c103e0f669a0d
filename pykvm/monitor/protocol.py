"""The conversation with one client: its commands, and the answers. Pure.

::

    pykvm   {"QMP": {"version": …, "capabilities": []}}
    client  {"execute": "qmp_capabilities"}
    pykvm   {"return": {}}
    client  {"execute": "query-status", "id": 1}
    pykvm   {"return": {"status": "running", …}, "id": 1}
    pykvm   {"event": "STOP", "data": {}, "timestamp": …}

The rules are those of QEMU's docs/interop/qmp-spec.rst, without out-of-band
execution. Each line of pykvm ends with CR LF.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pykvm.errors import shown
from pykvm.monitor.stream import JsonStream, Malformed

Json = Mapping[str, Any]
GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
NEGOTIATE = "qmp_capabilities"
_MEMBERS = ("execute", "arguments", "id")


class QmpError(Exception):
    """The error with which a command is answered: its class and a sentence."""

    def __init__(self, description: str, kind: str = GENERIC_ERROR) -> None:
        super().__init__(description)
        self.description = shown(description)  # it may contain a name that is not UTF-8
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command. ``reply`` has the ``id`` for its answer, if it gave one."""

    name: str
    arguments: Json
    reply: Json = field(default_factory=dict)

    def success(self, value: Any) -> bytes:
        """The answer with the command's result."""
        return encode({"return": value, **self.reply})

    def failure(self, error: QmpError) -> bytes:
        """The answer with the error."""
        details = {"class": error.kind, "desc": error.description}
        return encode({"error": details, **self.reply})


def encode(message: Json) -> bytes:
    """``message`` as bytes for the socket."""
    return json.dumps(message).encode("ascii") + b"\r\n"


class Conversation:
    """Turns the bytes of one client into commands and answers.

    ``negotiated``: the client gets events and may use all commands.
    """

    def __init__(self, version: Json) -> None:
        self.greeting = encode({"QMP": {"version": version, "capabilities": []}})
        self.negotiated = False
        self._stream = JsonStream()

    def receive(self, data: bytes) -> list[Command | bytes]:
        """The commands to execute and the answers to send after ``data``, in order."""
        return [self._take(item) for item in self._stream.feed(data)]

    def _take(self, item: Any) -> Command | bytes:
        command = Command("", {})
        try:
            if isinstance(item, Malformed):
                raise QmpError(item.reason)
            message = item.value
            if not isinstance(message, dict):
                raise QmpError("a message must be a JSON object")
            if "id" in message:
                command = Command("", {}, {"id": message["id"]})
            command = _command(message, command.reply)
            if command.name == NEGOTIATE:
                self._negotiate(command)
                return command.success({})
            if not self.negotiated:
                raise QmpError(f"the first command must be {NEGOTIATE}", COMMAND_NOT_FOUND)
        except QmpError as error:
            return command.failure(error)
        return command

    def _negotiate(self, command: Command) -> None:
        if self.negotiated:
            raise QmpError("the capabilities are already negotiated", COMMAND_NOT_FOUND)
        for name, value in command.arguments.items():
            if name != "enable":
                raise QmpError(f"{NEGOTIATE} has no argument '{name}'")
            if value != []:
                raise QmpError("there are no capabilities to enable")
        self.negotiated = True


def _command(message: Json, reply: Json) -> Command:
    for name in message:
        if name not in _MEMBERS:
            raise QmpError(f"a command has no member '{name}'")
    if "execute" not in message:
        raise QmpError("a command needs the member 'execute'")
    name, arguments = message["execute"], message.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError("'execute' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("'arguments' must be an object")
    return Command(name, arguments, reply)
