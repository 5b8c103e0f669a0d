"""``--monitor``: QMP over the socket, driven by QEMU's own client, and on the command line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from monitor_clients import Raw, listens, run_client, served, with_disk
from patience import PATIENCE, until
from qemu.qmp import ExecuteError
from run_on_terminal import Terminal

from pykvm import __version__
from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.devices.virtio_blk.observe.stats import COUNTERS
from pykvm.machine import DiskConfig, RunState
from pykvm.machine.outcome import OutcomeKind

pytestmark = pytest.mark.kvm

PYKVM = [sys.executable, "-m", "pykvm"]


# -- QEMU's client -----------------------------------------------------------------


def test_stop_and_cont(qmp_path, machine):
    async def talk(client):
        seen = []
        with client.listener(("STOP", "RESUME")) as events:
            for command in ("query-status", "stop", "stop", "query-status", "cont", "query-status"):
                seen.append(await client.execute(command))
            names = [(await events.get())["event"] for _ in range(2)]
            assert events.empty()
        return seen, names

    seen, names = run_client(qmp_path, talk)
    running = {"status": "running", "running": True}
    paused = {"status": "paused", "running": False}
    assert seen == [running, {}, {}, paused, {}, running]
    assert names == ["STOP", "RESUME"]
    assert machine.status is RunState.RUNNING


def test_queries_and_errors(qmp_path, machine):
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
    version, commands, name, block = run_client(qmp_path, talk)
    assert errors == ["CommandNotFound", "GenericError", "CommandNotFound"]
    numbers = version["qemu"]
    assert f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}" == __version__
    assert {"stop", "cont", "quit", "qmp_capabilities"} <= {c["name"] for c in commands}
    assert all(set(command) == {"name"} for command in commands)
    assert (name, block) == ({}, [])


def test_a_full_disk_from_the_event_to_the_cure(qmp_path, bare_kernel, tmp_path):
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

    with served(qmp_path, config) as machine:
        events, status, block, after, stats = run_client(qmp_path, talk)
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
    assert inserted["cache"] == {"writeback": True, "direct": False, "no-flush": False}
    assert stats["device"] == "virtio0"
    counts = stats["stats"]
    assert {*COUNTERS, "idle_time_ns"} <= set(counts)
    assert (counts["wr_operations"], counts["wr_bytes"]) == (1, 512)
    assert (counts["rd_operations"], counts["failed_wr_operations"]) == (1, 0)
    assert image.read_bytes()[4096:4608] == b"x" * 512


def test_quit(qmp_path, spinning):
    with served(qmp_path, spinning) as machine, Raw(qmp_path) as client:
        machine.start()
        assert client.ask("quit", id=1) == {"return": {}, "id": 1}
        assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT
        (shutdown,) = client.events("SHUTDOWN")
    assert shutdown["data"]["reason"] == "host-qmp-quit"


# -- the command line ----------------------------------------------------------------


def start(kernel: Path, words: str, *options: str, **more: object) -> subprocess.Popen:
    command = [*PYKVM, "boot", "--kernel", str(kernel), "--append", words, *options]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, **more})


def test_boot_with_a_monitor(bare_kernel, qmp_path):
    process = start(bare_kernel, "spin", "--monitor", str(qmp_path))
    until(lambda: listens(qmp_path), "the monitor")
    with Raw(qmp_path) as client:
        until(lambda: client.ask("query-status")["return"]["running"], "the start")
        assert client.ask("stop") == {"return": {}}
        assert client.ask("quit") == {"return": {}}
        client.events("SHUTDOWN")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert b"'cont' on the monitor" in err
    assert not qmp_path.exists()


def test_a_bad_path_is_refused_before_the_boot(bare_kernel, tmp_path):
    process = start(bare_kernel, "spin", "--monitor", str(tmp_path))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert b"--monitor" in err


def test_keys_stop_and_resume_the_guest(bare_kernel):
    terminal = Terminal("--kernel", str(bare_kernel), "--append", "echo")
    try:
        terminal.wait_until_raw()
        terminal.type(b"a")
        terminal.expect(b"a")
        terminal.type(b"\x01s")
        terminal.expect(b"\r\npykvm: the guest is stopped; Ctrl-a c lets it continue\r\n")
        terminal.type(b"Q\x01c")
        terminal.expect(b"Q")
        terminal.type(b"\x01s")
        terminal.expect(b"lets it continue")
        terminal.type(b"\x01x")
        assert terminal.finish() == 0
    finally:
        terminal.close()
