"""``--monitor``: QMP over the socket, driven by QEMU's own client and by raw bytes."""

import asyncio
import json
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient
from run_on_terminal import Terminal

from pykvm import __version__
from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.devices.virtio_blk.faults import Fault, FaultPlan
from pykvm.devices.virtio_blk.stats import COUNTERS
from pykvm.errors import UsageError
from pykvm.machine import DiskConfig, Machine, MachineConfig, RunState
from pykvm.machine.events import MAX_BACKLOG, BlockIoError, Event
from pykvm.monitor import Monitor, MonitorSocket, server
from pykvm.platform.outcome import Outcome, OutcomeKind
from pykvm.testing.bare import BlockDriver, BlockRequest, Script
from pykvm.testing.bare.layout import MEMORY_NEEDED

pytestmark = pytest.mark.kvm

PATIENCE = 20.0
PYKVM = [sys.executable, "-m", "pykvm"]


def until(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@contextmanager
def served(path: Path, config: MachineConfig):
    """A machine that is not started yet, with its monitor."""
    with MonitorSocket(path) as listener, Machine(config) as machine, Monitor(listener, machine):
        yield machine


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "qmp"


@pytest.fixture
def spinning(bare_kernel) -> MachineConfig:
    return MachineConfig(kernel=bare_kernel, append="spin", memory=MEMORY_NEEDED)


def with_disk(kernel: Path, script: Script, disk: DiskConfig) -> MachineConfig:
    return MachineConfig(
        kernel=kernel,
        append="script",
        initrd=script.encode(),
        memory=MEMORY_NEEDED,
        disks=[disk],
    )


@pytest.fixture
def machine(path, spinning):
    with served(path, spinning) as machine:
        machine.start()
        yield machine


class Raw:
    """A client that sends and reads what it likes."""

    def __init__(self, path: Path, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")
        self.greeting = self.read()
        if negotiate:
            assert self.ask("qmp_capabilities") == {"return": {}}

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> dict | None:
        """The next message, None at the end."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def ask(self, command: str, **more: object) -> dict:
        """Execute ``command``; its answer."""
        self.send(json.dumps({"execute": command, **more}).encode())
        while "event" in (message := self.read()):
            pass
        return message

    def events(self, last: str) -> list[dict]:
        """The events up to and with ``last``."""
        found = [self.read()]
        while found[-1]["event"] != last:
            found.append(self.read())
        return found


def run_client(path: Path, talk) -> object:
    """What ``talk(client)``, a coroutine, gives, with QEMU's client connected to ``path``."""

    async def whole() -> object:
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            return await asyncio.wait_for(talk(client), PATIENCE)
        finally:
            with suppress(Exception):
                await client.disconnect()

    return asyncio.run(whole())


# -- QEMU's client -----------------------------------------------------------------


def test_stop_and_cont(path, machine):
    async def talk(client):
        seen = []
        with client.listener(("STOP", "RESUME")) as events:
            for command in ("query-status", "stop", "stop", "query-status", "cont", "query-status"):
                seen.append(await client.execute(command))
            names = [(await events.get())["event"] for _ in range(2)]
            assert events.empty()
        return seen, names

    seen, names = run_client(path, talk)
    running = {"status": "running", "running": True}
    paused = {"status": "paused", "running": False}
    assert seen == [running, {}, {}, paused, {}, running]
    assert names == ["STOP", "RESUME"]
    assert machine.status is RunState.RUNNING


def test_errors_and_what_there_is(path, machine):
    async def talk(client):
        for command, arguments in [("system_powerdown", None), ("stop", {"x": 1}), ("", None)]:
            with pytest.raises(ExecuteError) as caught:
                await client.execute(command, arguments)
            errors.append(caught.value.error_class)
        return (
            await client.execute("query-version"),
            await client.execute("query-commands"),
            await client.execute("query-name"),
            await client.execute("query-block"),
        )

    errors = []
    version, commands, name, block = run_client(path, talk)
    assert errors == ["CommandNotFound", "GenericError", "CommandNotFound"]
    numbers = version["qemu"]
    assert f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}" == __version__
    assert {"stop", "cont", "quit", "qmp_capabilities"} <= {c["name"] for c in commands}
    assert all(set(command) == {"name"} for command in commands)
    assert (name, block) == ({}, [])


def test_a_full_disk_from_the_event_to_the_cure(path, bare_kernel, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    plan = FaultPlan([Fault(operation="write", errno="ENOSPC")])
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    driver.submit([BlockRequest.write(8, b"x" * 512), BlockRequest.read(0, 1024)])
    script.exit(0)
    config = with_disk(bare_kernel, script, DiskConfig(image, faults=plan))

    async def talk(client):
        with client.listener(("BLOCK_IO_ERROR", "STOP", "RESUME", "SHUTDOWN")) as events:
            machine.start()
            error, stop = await events.get(), await events.get()
            status = await client.execute("query-status")
            (block,) = await client.execute("query-block")
            plan.remove(plan.rules[0])
            await client.execute("cont")
            resume, shutdown = await events.get(), await events.get()
        (after,) = await client.execute("query-block")
        (stats,) = await client.execute("query-blockstats")
        return [error, stop, resume, shutdown], status, block, after, stats

    with served(path, config) as machine:
        events, status, block, after, stats = run_client(path, talk)
        assert machine.wait(PATIENCE).status == 0
    assert [event["event"] for event in events] == ["BLOCK_IO_ERROR", "STOP", "RESUME", "SHUTDOWN"]
    assert events[0]["data"] == {
        "device": "virtio0",
        "node-name": "virtio0",
        "operation": "write",
        "action": "stop",
        "nospace": True,
        "reason": "No space left on device",
        "sector": 8,
        "length": 512,
        "errno": 28,
    }
    assert events[3]["data"] == {
        "guest": True,
        "reason": "guest-shutdown",
        "end": "power_off",
        "status": 0,
    }
    assert all(abs(e["timestamp"]["seconds"] - time.time()) < 600 for e in events)
    assert status == {"status": "io-error", "running": False}
    assert (block["io-status"], after["io-status"]) == ("nospace", "ok")
    assert block["device"] == "virtio0"
    inserted = block["inserted"]
    assert (inserted["file"], inserted["drv"], inserted["ro"]) == (str(image), "raw", False)
    assert inserted["image"]["virtual-size"] == 1 << 20
    # This driver cannot flush, so every write is on stable storage when it completes.
    assert inserted["cache"] == {"writeback": False, "direct": False, "no-flush": False}
    assert stats["device"] == "virtio0"
    counts = stats["stats"]
    assert {*COUNTERS, "idle_time_ns"} <= set(counts)
    assert (counts["wr_operations"], counts["wr_bytes"]) == (1, 512)
    assert (counts["rd_operations"], counts["failed_wr_operations"]) == (1, 0)
    assert image.read_bytes()[4096:4608] == b"x" * 512


def test_quit(path, spinning):
    with served(path, spinning) as machine, Raw(path) as client:
        machine.start()
        assert client.ask("quit", id=1) == {"return": {}, "id": 1}
        assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT
        (shutdown,) = client.events("SHUTDOWN")
    assert shutdown["data"]["reason"] == "host-qmp-quit"


# -- what clients do --------------------------------------------------------------


def test_before_the_start_and_after_the_end(path, spinning):
    with served(path, spinning) as machine, Raw(path) as client:
        assert client.ask("query-status")["return"]["status"] == "prelaunch"
        assert client.ask("cont")["error"]["class"] == "GenericError"
        machine.start()
        machine.finish(Outcome.timeout(1))
        machine.wait()
        assert client.ask("query-status")["return"]["status"] == "shutdown"
        for command in ("stop", "cont"):
            assert "over" in client.ask(command)["error"]["desc"]


def test_a_connection_survives_nonsense(path, machine):
    with Raw(path, negotiate=False) as client:
        assert client.greeting["QMP"]["capabilities"] == []
        assert client.ask("stop")["error"]["class"] == "CommandNotFound"
        for data in (b"nonsense\n", b"{]", b'{"execute": "stop\n', b"\xff\xfe\n", b"[]", b"{}"):
            client.send(data)
            assert client.read()["error"]["class"] == "GenericError"
        assert client.ask("qmp_capabilities", id=[1, {}]) == {"return": {}, "id": [1, {}]}
        client.send(b"x" * (1 << 20) + b"\n")
        assert "error" in client.read()
        assert client.ask("query-status")["return"]["running"]


def test_commands_are_executed_in_order_however_they_come(path, machine):
    names = ["query-status", "stop", "query-status", "cont", "query-status"]
    messages = [json.dumps({"execute": name, "id": i}) for i, name in enumerate(names)]
    with Raw(path) as client:
        client.send("".join(messages).encode())
        answers = [client.read() for _ in range(7)]
    assert [answer.get("event", answer.get("id")) for answer in answers] == [
        0, "STOP", 1, 2, "RESUME", 3, 4,
    ]  # fmt: skip
    assert [answers[i]["return"]["status"] for i in (0, 3, 6)] == ["running", "paused", "running"]


def test_answers_are_sent_to_a_client_that_has_said_all(path, machine):
    """As ``printf … | socat - UNIX:path`` does."""
    with Raw(path) as client:
        client.send(b'{"execute": "stop"}\n{"execute": "query-status"}\n')
        client.socket.shutdown(socket.SHUT_WR)
        messages = []
        while message := client.read():
            messages.append(message)
    assert messages[-1]["return"]["status"] == "paused"


def test_a_client_that_says_much_at_once_gets_every_answer(path, machine):
    """It reads only when it has said all; the answers are more than is kept for anybody."""
    count = 4 * server.MAX_UNREAD // 300
    with Raw(path) as client:
        talk = threading.Thread(target=client.send, args=[b'{"execute": "query-commands"}' * count])
        talk.start()
        talk.join(0.2)  # it may have to wait for the reader
        answers = [client.read() for _ in range(count)]
        talk.join(PATIENCE)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read() is None
    assert all(answer == answers[0] and answer["return"] for answer in answers)


def test_what_waits_for_a_client_that_has_said_all_is_sent(path, machine):
    """More than the socket holds."""
    count = 800
    with Raw(path) as client:
        client.send(b'{"execute": "query-commands"}' * count)
        client.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # the monitor has come to the end of it
        for _ in range(count):
            assert "return" in client.read()
        assert client.read() is None


def test_several_clients(path, machine):
    with Raw(path) as one, Raw(path) as two, Raw(path, negotiate=False) as silent:
        one.send(b'{"execute": "stop"}')
        assert one.read()["event"] == "STOP"
        assert one.read() == {"return": {}}
        assert two.read()["event"] == "STOP"
        two.ask("cont")
        # No events for one that has not negotiated.
        silent.send(b'{"execute": "qmp_capabilities"}')
        assert silent.read() == {"return": {}}


def test_more_clients_than_are_served_wait(path, machine, monkeypatch):
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    with Raw(path) as one, Raw(path), socket.socket(socket.AF_UNIX) as third:
        third.connect(str(path))
        assert one.ask("query-status")["return"]["running"]
        assert select.select([third], [], [], 0.05)[0] == []
        one.__exit__()
        third.settimeout(PATIENCE)
        assert b"QMP" in third.recv(4096)


def test_clients_that_leave_at_any_moment(path, machine):
    for data in (b"", b"{", b'{"execute": "qmp_capabilities"}{"execute": "stop"}'):
        with Raw(path, negotiate=False) as client:
            client.send(data)
    with Raw(path) as client:
        assert client.ask("cont") == {"return": {}}


def test_a_client_that_does_not_read_holds_nobody_up(path, machine, monkeypatch):
    """It gets no more answers, and is dropped when too many events have gathered for it."""
    monkeypatch.setattr(server, "MAX_UNREAD", 4096)
    with Raw(path) as deaf, Raw(path) as client:
        deaf.socket.settimeout(0.1)
        with suppress(TimeoutError):
            while True:
                deaf.send(b'{"execute": "query-commands"}' * 100)
        for _ in range(40):
            assert client.ask("stop") == {"return": {}}
            assert client.ask("cont") == {"return": {}}
        with pytest.raises(BrokenPipeError):
            deaf.send(b" ")


def test_a_guest_cannot_fill_the_memory_with_errors_to_be_told(path, machine, monkeypatch):
    """The monitor is slower than the disk that fails."""
    free, told = threading.Event(), []

    def slowly(event: Event) -> None:
        free.wait(PATIENCE)
        told.append(event)

    monkeypatch.setattr(server, "event_message", slowly)
    error = BlockIoError("virtio0", IoError("read", 0, 512, 5, ErrorAction.REPORT))
    with Raw(path) as client:
        for _ in range(5 * MAX_BACKLOG):
            machine._announcer.announce(error)
            machine.flush_events()
        free.set()
        client.ask("query-status")
    assert MAX_BACKLOG <= len(told) <= MAX_BACKLOG + 1


def test_a_stop_that_waits_holds_up_its_client_only(path, bare_kernel):
    """A vCPU is busy with a sink that blocks; others may look, and quit."""
    busy, free = threading.Event(), threading.Event()

    def sink(data: bytes) -> None:
        busy.set()
        free.wait(PATIENCE)

    config = MachineConfig(kernel=bare_kernel, append="hello 3", memory=MEMORY_NEEDED)
    with served(path, config) as machine, Raw(path) as one, Raw(path) as two:
        machine.console, machine.on_end = sink, free.set
        machine.start()
        assert busy.wait(PATIENCE)
        one.send(b'{"execute": "stop"}{"execute": "query-status"}')
        assert two.ask("query-status")["return"]["status"] == "running"
        assert select.select([one.socket], [], [], 0.05)[0] == []
        assert two.ask("quit") == {"return": {}}
        assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT


def test_a_stop_that_waits_for_a_disk_does_not_hold_up_the_end(
    path, bare_kernel, tmp_path, monkeypatch
):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    plan = FaultPlan([Fault(operation="write", delay_ms=1000 * PATIENCE)])
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    driver.submit([BlockRequest.write(8, b"x" * 512)])
    config = with_disk(bare_kernel, script, DiskConfig(image, faults=plan))
    began = time.monotonic()
    with served(path, config) as machine, Raw(path) as one, Raw(path) as two:
        machine.start()
        until(lambda: plan.rules[0].strikes, "the write is not executing")
        (disk,) = machine.disks
        awaited, pause = threading.Event(), disk.pause

        def noted(timeout: float) -> bool:
            awaited.set()
            return pause(timeout)

        monkeypatch.setattr(disk, "pause", noted)
        one.send(b'{"execute": "stop"}')
        assert awaited.wait(PATIENCE)
        assert two.ask("quit") == {"return": {}}
        assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT
    assert time.monotonic() - began < PATIENCE
    assert image.read_bytes()[4096:4608] == bytes(512)


def test_clients_hear_the_end(path, bare_kernel):
    config = MachineConfig(kernel=bare_kernel, append="panic", memory=MEMORY_NEEDED)
    with served(path, config) as machine:
        client = Raw(path)
        machine.run(PATIENCE)
    with client:
        panicked, shutdown = client.events("SHUTDOWN")
        assert client.read() is None
    assert panicked["event"] == "GUEST_PANICKED"
    assert panicked["data"]["action"] == "poweroff"
    assert shutdown["data"]["reason"] == "guest-panic"


# -- the socket file ---------------------------------------------------------------


def test_the_file_is_its_owners_and_goes_away(path):
    before = os.umask(0)
    try:
        with MonitorSocket(path):
            mode = os.stat(path).st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_nothing_else(path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with MonitorSocket(path):
        with pytest.raises(UsageError, match="somebody listens"):
            MonitorSocket(path)
        assert stat.S_ISSOCK(os.stat(path).st_mode)
    path.write_text("precious")
    with pytest.raises(UsageError, match="a file already"):
        MonitorSocket(path)
    assert path.read_text() == "precious"


def test_another_file_in_its_place_stays(path):
    with MonitorSocket(path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 120, "too long"), ("missing/qmp", "no such file"), ("a\0b", "not a file name")],
)
def test_paths_that_cannot_be(tmp_path, name, words):
    with pytest.raises(UsageError, match=words):
        MonitorSocket(tmp_path / name)


# -- the command line ----------------------------------------------------------------


def start(kernel: Path, words: str, *options: str, **more: object) -> subprocess.Popen:
    command = [*PYKVM, "boot", "--kernel", str(kernel), "--append", words, *options]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, **more})


def test_boot_with_a_monitor(bare_kernel, path):
    process = start(bare_kernel, "spin", "--monitor", str(path))
    until(path.exists, "the socket")
    with Raw(path) as client:
        until(lambda: client.ask("query-status")["return"]["running"], "the start")
        assert client.ask("stop") == {"return": {}}
        assert client.ask("quit") == {"return": {}}
        client.events("SHUTDOWN")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert b"'cont' on the monitor" in err
    assert not path.exists()


def test_a_bad_path_costs_nobody_a_boot(bare_kernel, tmp_path):
    process = start(bare_kernel, "spin", "--monitor", str(tmp_path))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert b"--monitor" in err


def test_stop_and_continue_by_keys(bare_kernel):
    terminal = Terminal("--kernel", str(bare_kernel), "--append", "echo")
    try:
        terminal.wait_until_raw()
        terminal.type(b"a")
        terminal.expect(b"a")
        terminal.type(b"\x01s")
        terminal.expect(b"\r\npykvm: the guest is stopped; Ctrl-a c lets it go on\r\n")
        terminal.type(b"Q\x01c")
        terminal.expect(b"Q")
        terminal.type(b"\x01s")
        terminal.expect(b"lets it go on")
        terminal.type(b"\x01x")
        assert terminal.finish() == 0
    finally:
        terminal.close()
