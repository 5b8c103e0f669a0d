"""The conversation with the guest's agent, which runs one command at a time."""

import os
import shlex
import threading
import time
from collections import deque
from typing import Any

from pykvm.agent.protocol import ENTROPY_BYTES, AgentClient
from pykvm.lean.records import record
from pykvm.machine.machine import Machine


@record
class RunRequest:
    """A command to run."""

    command: bytes | tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...] = ()
    cwd: bytes = b""
    timeout: float = 0.0
    stdin: bool = True
    manual_credit: bool = False


@record
class Exit:
    """The end of a command."""

    status: int
    signal: int = 0
    timed_out: bool = False


class Command:
    """A command, from the request to its end."""

    def __init__(self, link: "Link", request: RunRequest, events: Any) -> None:
        line = request.command
        if isinstance(line, tuple):
            line = shlex.join(os.fsdecode(part) for part in line).encode()
        for name, value in request.env:
            line = b"export %s=%s; %s" % (name, shlex.quote(value.decode()).encode(), line)
        if request.cwd:
            line = b"cd %s && %s" % (shlex.quote(request.cwd.decode()).encode(), line)
        self.link = link
        self.line = line
        self.events = events
        self.input: list[bytes | None] = []
        self.client: AgentClient | None = None

    def stdin(self, data: bytes) -> bool:
        if self.client is None:
            self.input.append(data)
            return True
        return self.client.stdin(data)

    def stdin_eof(self) -> None:
        if self.client is None:
            self.input.append(None)
        else:
            self.client.stdin_eof()

    def signal(self, number: int) -> None:
        if self.client is not None:
            self.client.signal(number)

    def consumed(self, stdout: int = 0, stderr: int = 0) -> None:
        pass

    # AgentEvents

    def ready(self) -> None:
        pass

    def stdout(self, data: bytes) -> None:
        self.events.stdout(data)

    def stderr(self, data: bytes) -> None:
        self.events.stderr(data)

    def exited(self, status: int) -> None:
        self.link.next()
        number = status - 128 if status > 128 else 0
        self.events.exited(Exit(status, number))

    def failed(self, reason: str) -> None:
        self.link.next()
        self.events.failed(reason)


class Link:
    def __init__(self, machine: Machine, events: Any) -> None:
        self.machine = machine
        self.events = events
        self.lock = threading.RLock()
        self.waiting: deque[Command] = deque()
        self.running: Command | None = None
        self.is_ready = False
        self.first = self.client(self)

    def client(self, events: Any) -> AgentClient:
        channel = self.machine.board.channel
        client = AgentClient(channel.feed, events)
        self.machine.channel = client.received
        channel.on_room = client.room
        return client

    def wake(self, now_ns: int, entropy: bytes, new_disks: bool) -> None:
        self.first.wake(now_ns, entropy, new_disks)

    def run(self, request: RunRequest, events: Any) -> Command:
        command = Command(self, request, events)
        with self.lock:
            self.waiting.append(command)
            self.begin()
        return command

    def next(self) -> None:
        with self.lock:
            self.running = None
            self.begin()

    def begin(self) -> None:
        if self.running or not self.waiting or not self.is_ready:
            return
        self.running = command = self.waiting.popleft()
        client = self.client(command)
        client.wake(time.time_ns(), os.urandom(ENTROPY_BYTES), False)
        client.execute(command.line)
        command.client = client
        for data in command.input:
            client.stdin_eof() if data is None else client.stdin(data)
        command.input.clear()

    def ready(self) -> None:
        with self.lock:
            self.is_ready = True
            self.begin()
        self.events.ready()

    def failed(self, reason: str) -> None:
        self.events.failed(reason)

    def power_off(self, status: int) -> None:
        running = self.running.client if self.running else None
        (running or self.first).power_off(status)

    def close(self, reason: str) -> None:
        with self.lock:
            commands = [*self.waiting, *([self.running] if self.running else [])]
            self.waiting.clear()
        for command in commands:
            command.events.failed(reason)


def connect(machine: Machine, events: Any) -> Link:
    return Link(machine, events)
