"""A machine and an agent without a guest: tests decide what the guest does, and when."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from patience import PATIENCE, until

from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import UsageError
from pykvm.guest.guest import Guest
from pykvm.guest.start import Start
from pykvm.guest.waiting import Limit
from pykvm.machine.config import MachineConfig
from pykvm.machine.end import EndOfRun
from pykvm.machine.events import Event
from pykvm.machine.outcome import Outcome
from pykvm.machine.run_state import RunState

AGENT = MachineConfig(guest="guest", agent=True, console="none")
BARE = MachineConfig(kernel="/kernel")


class FakeMachine:
    """Stands for a Machine. ``typed`` is the console's input, ``log`` has the calls."""

    def __init__(self, config: MachineConfig, restored: bool = False) -> None:
        self.config = config
        self.restored = restored
        self.unseen_disks = False
        self.disks: list[object] = []
        self.typed = bytearray()
        self.log: list[str] = []
        self.console: Callable[[bytes], None] = lambda data: None
        self.board = SimpleNamespace(console=SimpleNamespace(feed=self.typed.extend))
        self.listener: Callable[[Event], None] = lambda event: None
        self.bug: BaseException | None = None
        self.status = RunState.PRELAUNCH
        self.failed = False
        self.notices: list[str] = []
        self.hardware = None
        self.closing = lambda: None
        self._end = EndOfRun()

    @property
    def outcome(self) -> Outcome | None:
        return self._end.outcome if self._end else None

    def start(self) -> None:
        self.status = RunState.RUNNING

    def wait(self) -> Outcome:
        while not self._end.wait(PATIENCE):
            pass
        if self.bug is not None:
            raise self.bug
        return self._end.outcome

    def finish(self, outcome: Outcome) -> None:
        self._end.set(outcome)
        self.status = RunState.after(self._end.outcome)

    def listen(self, listener: Callable[[Event], None]) -> None:
        self.listener = listener

    def add_disk(self, config: DiskConfig) -> object:
        disk = SimpleNamespace(config=config, number=5, faults=config.faults)
        self.disks.append(disk)
        return disk

    def remove_disk(self, disk: object) -> None:
        self.disks.remove(disk)

    def pause(self) -> None:
        self.status = RunState.PAUSED

    def resume(self) -> None:
        self.status = RunState.RUNNING

    def close(self) -> None:
        self.log.append("close")
        self.closing()

    def snapshot(self) -> "FakeSaved":
        return FakeSaved()

    def reset(self, saved: "FakeSaved") -> None:
        self.log.append(f"reset while {self.status.value}")
        if saved.damage is not None:
            self.finish(Outcome.error("the guest could not be put back"))
            raise saved.damage
        self.restored = True

    @contextmanager
    def paused(self) -> "Iterator[None]":
        yield

    def flush_events(self) -> None:
        """No event waits."""


class FakeSaved:
    """Stands for a MachineSnapshot: ``problem`` is found before a reset, ``damage`` in it."""

    id = "1234"

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.damage: Exception | None = None
        self.closed = 0

    def check_open(self) -> None:
        if self.closed:
            raise UsageError("the snapshot is closed", "close it later")

    def check_reset(self, machine: FakeMachine) -> None:
        if self.problem is not None:
            raise self.problem

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeCommand:
    """A command in the guest, and its handle: ``sent`` is its input, ``signals`` are its own."""

    request: Any
    events: Any
    sent: bytearray = field(default_factory=bytearray)
    signals: list[int] = field(default_factory=list)
    credit: list[int] = field(default_factory=lambda: [0, 0])
    ended_input: bool = False
    has_room: bool = True

    def stdin(self, data: bytes) -> bool:
        self.sent += data
        return self.has_room

    def stdin_eof(self) -> None:
        self.ended_input = True

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def consumed(self, stdout: int = 0, stderr: int = 0) -> None:
        self.credit[0] += stdout
        self.credit[1] += stderr

    # What the guest does.

    def prints(self, data: bytes, stream: str = "stdout") -> None:
        getattr(self.events, stream)(data)

    def ends(self, status: int = 0, signal: int = 0) -> None:
        self.events.exited(SimpleNamespace(status=status, signal=signal, timed_out=False))


@dataclass
class FakeTransfer:
    """A file on its way, and its handle: ``sent`` has arrived in the guest."""

    kind: str
    path: bytes
    mode: int
    events: Any
    sent: bytearray = field(default_factory=bytearray)
    has_room: bool = True
    cancelled: bool = False
    at_end: Callable[[], None] = lambda: None

    def data(self, data: bytes) -> bool:
        self.sent += data
        return self.has_room

    def end(self) -> None:
        self.at_end()

    def cancel(self) -> None:
        self.cancelled = True


class FakeClient:
    """Stands for an AgentClient, which is there at once unless ``silent``."""

    def __init__(self, machine: FakeMachine, events: Any, silent: bool) -> None:
        self.machine = machine
        self.events = events
        self.lock = threading.RLock()
        self.commands: list[Any] = []
        self.woken: tuple[int, bytes | None, bool] | None = None
        self.on_run: Callable[[Any], None] = lambda command: None
        self.powered_off: list[int] = []
        self.settles = True
        self.settling: list[Any] = []
        if not silent:
            events.ready()

    def wake(self, now_ns: int, entropy: bytes | None, new_disks: bool) -> None:
        self.woken = (now_ns, entropy, new_disks)

    def run(self, request: Any, events: Any) -> FakeCommand:
        command = FakeCommand(request, events)
        self.commands.append(command)
        self.on_run(command)
        return command

    def push(self, path: bytes, mode: int, events: Any) -> "FakeTransfer":
        return self._transfer(FakeTransfer("push", path, mode, events))

    def pull(self, path: bytes, events: Any) -> "FakeTransfer":
        return self._transfer(FakeTransfer("pull", path, 0, events))

    def settle(self, events: Any) -> None:
        self.settling.append(events)
        if self.settles:
            events.done(0)

    def dmesg(self, events: Any) -> "FakeTransfer":
        return self._transfer(FakeTransfer("dmesg", b"", 0, events))

    def rescan(self, events: Any) -> None:
        self._transfer(FakeTransfer("rescan", b"", 0, events))

    def _transfer(self, transfer: "FakeTransfer") -> "FakeTransfer":
        self.commands.append(transfer)
        self.on_run(transfer)
        return transfer

    def power_off(self, status: int) -> None:
        self.powered_off.append(status)
        self.machine.finish(Outcome.power_off(status))

    def close(self, reason: str) -> None:
        for command in self.commands:
            command.events.failed(reason)


class FakeGuest:
    """A Guest, its ``machine`` and its agent's ``client``."""

    def __init__(
        self,
        monkeypatch: Any,
        config: MachineConfig = AGENT,
        *,
        restored: bool = False,
        silent: bool = False,
        timeout: float = 1000.0,
        **start: Any,
    ) -> None:
        self.machine = FakeMachine(config, restored)
        self.client: FakeClient
        monkeypatch.setattr(Start, "machine", lambda *_: self.machine)

        def connect(machine: FakeMachine, events: Any) -> FakeClient:
            self.client = FakeClient(machine, events, silent)
            return self.client

        monkeypatch.setattr("pykvm.machine.agent_link.connect", connect)
        limit = Limit(timeout)
        self.guest = Guest(Start(config, **start), limit)
        self.guest._run()
        self.guest._wait_ready(limit.deadline(None))

    def answers(self, respond: Callable[[Any], None]) -> None:
        """Each request that is made from now on goes to ``respond``, in the caller's thread."""
        self.client.on_run = respond

    def command(self, number: int = 0) -> Any:
        """The request of this ``number``, once it was made."""
        until(lambda: len(self.client.commands) > number)
        return self.client.commands[number]


__all__ = ["AGENT", "BARE", "FakeCommand", "FakeGuest", "FakeMachine"]
