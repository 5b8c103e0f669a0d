"""Clients of the monitor: raw bytes in any pieces, many clients, and clients that leave."""

import json
import select
import socket
import threading
import time
from contextlib import suppress

import pytest
from monitor_clients import Raw, served, with_disk
from patience import PATIENCE, until

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.machine import DiskConfig, MachineConfig
from pykvm.machine.events import MAX_BACKLOG, BlockIoError, Event
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.monitor import server

pytestmark = pytest.mark.kvm


def test_stop_and_cont_are_errors_before_the_start_and_after_the_end(qmp_path, spinning):
    with served(qmp_path, spinning) as machine, Raw(qmp_path) as client:
        assert client.ask("query-status")["return"]["status"] == "prelaunch"
        assert client.ask("cont")["error"]["class"] == "GenericError"
        machine.start()
        machine.finish(Outcome.timeout(1))
        machine.wait()
        assert client.ask("query-status")["return"]["status"] == "shutdown"
        for command in ("stop", "cont"):
            assert "over" in client.ask(command)["error"]["desc"]


def test_a_connection_survives_nonsense(qmp_path, machine):
    with Raw(qmp_path, negotiate=False) as client:
        assert client.greeting["QMP"]["capabilities"] == []
        assert client.ask("stop")["error"]["class"] == "CommandNotFound"
        for data in (b"nonsense\n", b"{]", b'{"execute": "stop\n', b"\xff\xfe\n", b"[]", b"{}"):
            client.send(data)
            assert client.read()["error"]["class"] == "GenericError"
        assert client.ask("qmp_capabilities", id=[1, {}]) == {"return": {}, "id": [1, {}]}
        client.send(b"x" * (1 << 20) + b"\n")
        assert "error" in client.read()
        assert client.ask("query-status")["return"]["running"]


def test_commands_are_executed_in_order_in_any_pieces(qmp_path, machine):
    names = ["query-status", "stop", "query-status", "cont", "query-status"]
    messages = [json.dumps({"execute": name, "id": i}) for i, name in enumerate(names)]
    with Raw(qmp_path) as client:
        client.send("".join(messages).encode())
        answers = [client.read() for _ in range(7)]
    assert [answer.get("event", answer.get("id")) for answer in answers] == [
        0, "STOP", 1, 2, "RESUME", 3, 4,
    ]  # fmt: skip
    assert [answers[i]["return"]["status"] for i in (0, 3, 6)] == ["running", "paused", "running"]


def test_a_client_that_has_shut_down_its_side_gets_its_answers(qmp_path, machine):
    """As ``printf … | socat - UNIX:path`` does."""
    with Raw(qmp_path) as client:
        client.send(b'{"execute": "stop"}\n{"execute": "query-status"}\n')
        client.socket.shutdown(socket.SHUT_WR)
        messages = []
        while message := client.read():
            messages.append(message)
    assert messages[-1]["return"]["status"] == "paused"


def test_a_client_with_many_commands_at_once_gets_every_answer(qmp_path, machine):
    """It reads only after it has sent all. The answers exceed what is kept for a client."""
    count = 4 * server.MAX_UNREAD // 300
    with Raw(qmp_path) as client:
        talk = threading.Thread(target=client.send, args=[b'{"execute": "query-commands"}' * count])
        talk.start()
        talk.join(0.2)  # it may have to wait for the reader
        answers = [client.read() for _ in range(count)]
        talk.join(PATIENCE)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read() is None
    assert all(answer == answers[0] and answer["return"] for answer in answers)


def test_a_client_that_has_shut_down_its_side_gets_waiting_data(qmp_path, machine):
    """More than the socket holds."""
    count = 800
    with Raw(qmp_path) as client:
        client.send(b'{"execute": "query-commands"}' * count)
        client.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.1)  # the monitor has read all of it
        for _ in range(count):
            assert "return" in client.read()
        assert client.read() is None


def test_several_clients_are_served(qmp_path, machine):
    with Raw(qmp_path) as one, Raw(qmp_path) as two, Raw(qmp_path, negotiate=False) as silent:
        one.send(b'{"execute": "stop"}')
        assert one.read()["event"] == "STOP"
        assert one.read() == {"return": {}}
        assert two.read()["event"] == "STOP"
        two.ask("cont")
        # A client that has not negotiated gets no events.
        silent.send(b'{"execute": "qmp_capabilities"}')
        assert silent.read() == {"return": {}}


def test_clients_beyond_the_limit_wait(qmp_path, machine, monkeypatch):
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    with Raw(qmp_path) as one, Raw(qmp_path), socket.socket(socket.AF_UNIX) as third:
        third.connect(str(qmp_path))
        assert one.ask("query-status")["return"]["running"]
        assert select.select([third], [], [], 0.05)[0] == []
        one.__exit__()
        third.settimeout(PATIENCE)
        assert b"QMP" in third.recv(4096)


def test_clients_may_leave_at_any_moment(qmp_path, machine):
    for data in (b"", b"{", b'{"execute": "qmp_capabilities"}{"execute": "stop"}'):
        with Raw(qmp_path, negotiate=False) as client:
            client.send(data)
    with Raw(qmp_path) as client:
        assert client.ask("cont") == {"return": {}}


def test_a_client_that_does_not_read_delays_no_other(qmp_path, machine, monkeypatch):
    """It gets no more answers, and is disconnected when too many events wait for it."""
    monkeypatch.setattr(server, "MAX_UNREAD", 4096)
    with Raw(qmp_path) as deaf, Raw(qmp_path) as client:
        deaf.socket.settimeout(0.1)
        with suppress(TimeoutError):
            while True:
                deaf.send(b'{"execute": "query-commands"}' * 100)
        for _ in range(40):
            assert client.ask("stop") == {"return": {}}
            assert client.ask("cont") == {"return": {}}
        with pytest.raises(BrokenPipeError):
            deaf.send(b" ")


def test_a_guest_cannot_fill_the_memory_with_events(qmp_path, machine, monkeypatch):
    """The monitor is slower than the disk that fails."""
    free, told = threading.Event(), []

    def slowly(event: Event) -> None:
        free.wait(PATIENCE)
        told.append(event)

    monkeypatch.setattr(server, "event_message", slowly)
    error = BlockIoError("virtio0", IoError("read", 0, 512, 5, ErrorAction.REPORT))
    with Raw(qmp_path) as client:
        for _ in range(5 * MAX_BACKLOG):
            machine._announcer.announce(error)
            machine.flush_events()
        free.set()
        client.ask("query-status")
    assert MAX_BACKLOG <= len(told) <= MAX_BACKLOG + 1


def test_a_waiting_stop_delays_only_its_client(qmp_path, bare_kernel):
    """A vCPU is busy with a sink that blocks. Other clients may query, and quit."""
    busy, free = threading.Event(), threading.Event()

    def sink(data: bytes) -> None:
        busy.set()
        free.wait(PATIENCE)

    config = MachineConfig(kernel=bare_kernel, append="hello 3", memory=MEMORY_NEEDED)
    with served(qmp_path, config) as machine, Raw(qmp_path) as one, Raw(qmp_path) as two:
        machine.console, machine.on_end = sink, free.set
        machine.start()
        assert busy.wait(PATIENCE)
        one.send(b'{"execute": "stop"}{"execute": "query-status"}')
        assert two.ask("query-status")["return"]["status"] == "running"
        assert select.select([one.socket], [], [], 0.05)[0] == []
        assert two.ask("quit") == {"return": {}}
        assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT


def test_a_stop_that_waits_for_a_disk_does_not_delay_the_end(
    qmp_path, bare_kernel, tmp_path, monkeypatch
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
    with served(qmp_path, config) as machine, Raw(qmp_path) as one, Raw(qmp_path) as two:
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


def test_clients_get_the_end_of_the_run(qmp_path, bare_kernel):
    config = MachineConfig(kernel=bare_kernel, append="panic", memory=MEMORY_NEEDED)
    with served(qmp_path, config) as machine:
        client = Raw(qmp_path)
        machine.run(PATIENCE)
    with client:
        panicked, shutdown = client.events("SHUTDOWN")
        assert client.read() is None
    assert panicked["event"] == "GUEST_PANICKED"
    assert panicked["data"]["action"] == "poweroff"
    assert shutdown["data"]["reason"] == "guest-panic"
