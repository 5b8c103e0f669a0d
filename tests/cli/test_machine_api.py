"""Machine as a Python API: its life, and that it leaves nothing behind."""

import json
import os
import resource
import signal
import threading
import time
import zlib
from pathlib import Path

import pytest
from patience import PATIENCE, until

from pykvm.bare import BlockDriver, BlockRequest, Script, filling
from pykvm.bare.run import run_script
from pykvm.errors import PykvmError, UsageError
from pykvm.machine import DiskConfig, Machine, MachineConfig, vcpu_group
from pykvm.machine.command import run_command
from pykvm.machine.outcome import Outcome, OutcomeKind

pytestmark = pytest.mark.kvm

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert not left


@pytest.fixture
def config(bare_kernel):
    """A function that makes the configuration of a bare guest in a mode."""

    def make(words: str = "hello 3", **more: object) -> MachineConfig:
        return MachineConfig(kernel=bare_kernel, append=words, **{"memory": 16 * MIB, **more})

    return make


@pytest.fixture
def disk(tmp_path) -> DiskConfig:
    path = tmp_path / "d.img"
    path.write_bytes(bytes(4096))
    return DiskConfig(path)


@pytest.fixture
def mute(bare_kernel, tmp_path):
    """A function that makes the configuration of a bundle whose guest has no agent, in a mode."""

    def make(words: str) -> MachineConfig:
        flavour = {"kernel": str(bare_kernel), "append": words}
        bundle = {"format": 1, "name": "mute", "memory_mib": 16, "flavours": {"native": flavour}}
        (tmp_path / "bundle.json").write_text(json.dumps(bundle))
        return MachineConfig(guest=tmp_path, agent=True)

    return make


# -- a life ------------------------------------------------------------------


def test_a_configuration_accepts_values_as_text(config, disk):
    with Machine(config(memory="16M", disks=[str(disk.path)])) as machine:
        assert machine.run(timeout=PATIENCE).kind is OutcomeKind.POWER_OFF
        assert repr(machine) == "<Machine: shutdown>"
        assert str(disk.path) in repr(machine.disks[0])


def test_a_running_disk_accepts_values_as_text(config, disk):
    with Machine(config(disks=[disk])) as machine:
        (made,) = machine.disks
        made.resize("8K")
        assert disk.path.stat().st_size == 8192
        with pytest.raises(UsageError, match="size cannot be 'much'"):
            made.resize("much")
        with pytest.raises(UsageError, match="limits cannot be 5"):
            made.limits = 5


def test_a_machine_needs_a_configuration():
    with pytest.raises(UsageError, match="config cannot be 'guest'"):
        Machine("guest")


def test_a_run_ends_with_the_guests_status(config):
    with Machine(config()) as machine:
        assert machine.outcome is None
        outcome = machine.run(timeout=PATIENCE)
        assert (outcome.kind, outcome.status) == (OutcomeKind.POWER_OFF, 3)
        assert machine.outcome == outcome
        assert machine.console_output == b"hello from CPL3\n"
    # The counts stay.
    assert machine.statistics()["exits"]["IoExit"] > 0


def test_a_machine_may_be_closed_without_a_start(config, disk):
    machine = Machine(config(disks=[disk], cpus=2))
    machine.close()
    machine.close()
    assert machine.outcome is None


def test_a_machine_may_be_closed_while_it_runs(config, disk):
    machine = Machine(config("spin", disks=[disk]))
    machine.start()
    machine.close()
    machine.close()


def test_a_machine_may_be_finished_before_it_starts(config):
    with Machine(config("spin")) as machine:
        machine.finish(Outcome.quit())
        assert machine.run(timeout=PATIENCE).kind is OutcomeKind.QUIT


def test_a_late_finish_changes_nothing(config):
    with Machine(config("exit 5")) as machine:
        machine.run(timeout=PATIENCE)
        machine.finish(Outcome.timeout(1))
        assert machine.wait().status == 5
    machine.finish(Outcome.quit())
    assert machine.outcome.status == 5


def test_any_thread_may_finish_a_run(config):
    with Machine(config("idle")) as machine:
        machine.start()
        timer = threading.Timer(0.05, machine.finish, [Outcome.quit()])
        timer.start()
        assert machine.wait(timeout=PATIENCE).kind is OutcomeKind.QUIT
        timer.join()


def test_a_signal_handler_may_finish_a_run(config):
    before = signal.getsignal(signal.SIGALRM)
    with Machine(config("spin")) as machine:
        signal.signal(signal.SIGALRM, lambda n, frame: machine.finish(Outcome.signalled(n)))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert machine.run(timeout=PATIENCE).status == 128 + signal.SIGALRM
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_a_machine_may_live_in_any_thread(config):
    """Neither building nor running nor closing needs the main thread."""
    statuses = []

    def live() -> None:
        with Machine(config("hello 7")) as machine:
            statuses.append(machine.run(timeout=PATIENCE).status)

    thread = threading.Thread(target=live)
    thread.start()
    thread.join(PATIENCE)
    assert statuses == [7]


def test_two_machines_run_at_once(config):
    with Machine(config("echo")) as one, Machine(config("echo")) as two:
        for machine in (one, two):
            machine.start()
        one.board.console.feed(b"one")
        two.board.console.feed(b"two")
        until(lambda: one.console_output == b"one", "the first echo")
        until(lambda: two.console_output == b"two", "the second echo")
        one.board.console.feed(b"\x04")
        assert one.wait(timeout=PATIENCE).status == 0
        # The other machine runs on.
        two.board.console.feed(b"!\x04")
        assert two.wait(timeout=PATIENCE).status == 0
        assert two.console_output == b"two!"


def test_no_vcpu_runs_within_paused(config):
    def exits() -> int:
        return machine.statistics()["exits"].get("IoExit", 0)

    with Machine(config("echo")) as machine:  # it polls the UART forever
        machine.start()
        until(exits, "the first exit")
        with machine.paused(), machine.paused():
            before = exits()
            time.sleep(0.05)
            assert exits() == before
        until(lambda: exits() > before, "an exit after the pause")


# -- commands ------------------------------------------------------------------


def test_a_guest_without_an_agent_runs_no_command(config):
    with (
        Machine(config(agent=True)) as machine,
        pytest.raises(
            UsageError,
            match="has no agent; configure it with guest='guest'",
        ),
    ):
        run_command(machine, "true")


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [
        (5, {}, "command cannot be 5; give a string"),
        ("cat", {"stdin": "text"}, "stdin cannot be 'text'; give bytes"),
        ("a\0b", {}, "NUL"),
        ("x" * 131072, {}, "longer than 128 KiB"),
    ],
)
def test_values_that_are_not_commands_are_refused(mute, command, more, words):
    with Machine(mute("spin")) as machine, pytest.raises(UsageError, match=words):
        run_command(machine, command, **more)


def test_each_command_needs_a_new_machine(mute):
    with Machine(mute("echo")) as machine:
        machine.start()
        with pytest.raises(UsageError, match="has been started; make a new one"):
            run_command(machine, "true")
    with pytest.raises(UsageError, match="machine cannot be 'guest'"):
        run_command("guest", "true")


def test_a_command_that_never_runs_has_failed(mute):
    with Machine(mute("spin")) as machine:
        result = run_command(machine, "true", timeout=0.05)
    assert (result.outcome.kind, result.status) == (OutcomeKind.TIMEOUT, 124)
    with Machine(mute("exit 0")) as machine:
        result = run_command(machine, "true", timeout=PATIENCE)
    assert (result.outcome.kind, result.stdout, result.stderr) == (OutcomeKind.ERROR, b"", b"")
    assert "powered off before it could run the command" in result.outcome.reason


# -- sinks ---------------------------------------------------------------------


def test_an_error_in_the_console_sink_ends_the_run(config):
    def sink(data: bytes) -> None:
        raise ZeroDivisionError("in the sink")

    with Machine(config(), console=sink) as machine:
        with pytest.raises(ZeroDivisionError, match="in the sink"):
            machine.run(timeout=PATIENCE)
        assert machine.outcome.kind is OutcomeKind.ERROR


def test_a_sink_may_be_replaced_before_the_start(config):
    with Machine(config()) as machine:
        seen = bytearray()
        machine.console = seen.extend
        machine.run(timeout=PATIENCE)
    assert seen == b"hello from CPL3\n"
    assert machine.console_output == b""


def test_a_stuck_thread_keeps_its_memory(config, monkeypatch):
    monkeypatch.setattr(vcpu_group, "STOP_SECONDS", 0.1)
    stuck, free = threading.Event(), threading.Event()

    def sink(data: bytes) -> None:
        stuck.set()
        free.wait(PATIENCE)

    machine = Machine(config(), console=sink)
    machine.start()
    assert stuck.wait(PATIENCE)
    with pytest.raises(TimeoutError):
        machine.close()
    machine.ram.read(0, 16)
    free.set()
    machine.close()


def test_on_end_frees_a_sink_that_blocks(config):
    free = threading.Event()
    with Machine(config(), console=lambda data: free.wait(PATIENCE)) as machine:
        machine.on_end = free.set
        machine.start()
        machine.finish(Outcome.quit())
        start = time.monotonic()
        machine.wait()
        assert time.monotonic() - start < PATIENCE / 2


# -- machines that cannot be built ---------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        "create.host_traits",
        "create.resolve",
        "create.check_limits",
        "create.GuestMemory",
        "create.create_vm",
        "create.load_kernel",
        "create.apply_entry",
        "machine.KvmPciServices",
        "machine.Board",
        "machine.ExitHandler",
        "vcpu_group.VcpuThread",
        "pykvm.devices.virtio_blk.image.file.Image",
        "pykvm.devices.virtio_blk.device.VirtioBlk",
        "plugging.VirtioPci",
    ],
)
def test_a_step_that_fails_leaves_nothing_behind(config, disk, monkeypatch, step):
    def fail(*arguments: object, **more: object) -> None:
        raise ZeroDivisionError(step)

    # Modules that only disks need are patched by their own names.
    monkeypatch.setattr(step if step.startswith("pykvm") else f"pykvm.machine.{step}", fail)
    with pytest.raises(ZeroDivisionError, match=step):
        Machine(config(disks=[disk]))


def test_running_out_of_descriptors_at_any_step_leaves_nothing_behind(config, disk, bare_kernel):
    second = DiskConfig(disk.path.with_name("second"))
    second.path.write_bytes(bytes(4096))
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    built = failed = 0
    try:
        for limit in range(lowest, lowest + 100):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                machine = Machine(config(disks=[disk, second]))
            except (OSError, PykvmError):
                failed += 1
                continue
            machine.close()
            built += 1
            if built == 2:
                break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert built == 2
    assert failed > 10


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cpus": 0}, "0 CPUs"),
        ({"memory": 4096}, "4096 bytes"),
        ({"memory": 16 * MIB + 1}, "multiple of 4096"),
        ({"kernel": Path("/nonexistent")}, "/nonexistent"),
        ({"initrd": Path("/nonexistent")}, "--initrd"),
        ({"initrd": bytes(20 * MIB)}, "initrd"),
        ({"guest": "nonexistent"}, "nonexistent"),
    ],
)
def test_a_wrong_value_is_a_usage_error(config, bare_kernel, more, words):
    values = {"kernel": bare_kernel, "memory": 16 * MIB, **more}
    with pytest.raises(UsageError, match=words):
        Machine(MachineConfig(**values))


def test_a_wrong_serial_is_a_usage_error(config, disk):
    with pytest.raises(UsageError, match="serial"):
        Machine(config(disks=[DiskConfig(disk.path, serial="x" * 21)]))


def test_the_same_disk_twice_is_a_usage_error(config, disk):
    with pytest.raises(UsageError, match=str(disk.path)):
        Machine(config(disks=[disk, disk]))


# -- sizes --------------------------------------------------------------------------


def disks(folder: Path, count: int) -> list[DiskConfig]:
    made = []
    for number in range(count):
        path = folder / f"{number}.img"
        path.write_bytes(bytes([number]) * 512)
        made.append(DiskConfig(path))
    return made


def test_thirty_disks_work(tmp_path):
    script = Script()
    last = BlockDriver(script, nth=29)
    last.start()
    batch = last.submit([BlockRequest.read(0, 512)])
    (outcome,) = batch.outcomes(run_script(script, disks(tmp_path, 30)).results)
    assert outcome.data == bytes([29]) * 512


@pytest.mark.parametrize("count", [31, 32])
def test_too_many_disks_are_a_usage_error(config, tmp_path, count):
    with pytest.raises(UsageError, match=f"{count} disks.*at most 30"):
        Machine(config(disks=disks(tmp_path, count)))


@pytest.mark.parametrize("size", [32 * MIB, 3 * GIB, 3 * GIB + MIB, 5 * GIB])
def test_the_guest_has_the_memory_that_was_asked_for(config, size):
    with Machine(config(memory=size)) as machine:
        assert machine.run(timeout=PATIENCE).status == 3


@pytest.mark.parametrize("fields", [{"shared_memory": True}, {"thp": False}, {"thp": "off"}])
def test_memory_may_be_shared_and_without_large_pages(config, fields):
    with Machine(config(**fields)) as machine:
        assert (machine.memory.fd >= 0) == ("shared_memory" in fields)
        assert machine.run(timeout=PATIENCE).status == 3


def test_memory_above_the_hole():
    """The guest maps and uses the memory above 4 GiB."""
    pdpt = 0x10_1000 + 4 * 8  # guest/bare/start.S: the entry for the fifth GiB
    script = Script()
    table = script.arena.allocate(4096, 4096)
    pages = b"".join((4 * GIB + i * 2 * MIB | 0x87).to_bytes(8, "little") for i in range(512))
    script.write_memory(table, pages)
    script.write_memory(pdpt, (table | 7).to_bytes(8, "little"))
    top = 5 * GIB - MIB
    script.write_memory(4 * GIB, b"first bytes above")
    script.fill_memory(top, 4096, 7)
    low, high = script.read_memory(4 * GIB, 17), script.hash_memory(top, 4096)
    run = run_script(script, memory=4 * GIB)
    assert run.results[low] == b"first bytes above"
    assert run.results[high] == zlib.crc32(filling(4096, 7))
