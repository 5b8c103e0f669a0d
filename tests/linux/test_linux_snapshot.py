"""A Linux guest that was saved, and the machines that begin where it was."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm
from pykvm import Machine
from pykvm.agent.protocol import RunRequest
from pykvm.agent.requests import Exit
from pykvm.machine.agent_link import connect

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

CONFIG = pykvm.MachineConfig(guest="guest", agent=True, console="none")
NONCE = b"only in this guest's memory"


class Session:
    """Runs one command in a guest that goes on afterwards."""

    def __init__(self, machine: Machine, command: bytes) -> None:
        self.ended = threading.Event()
        self.failure = ""
        self.client = connect(machine, self)
        self.client.run(RunRequest(command, stdin=False), self)

    def ready(self) -> None:
        pass

    def stdout(self, data: bytes) -> None:
        pass

    def stderr(self, data: bytes) -> None:
        pass

    def room(self) -> None:
        pass

    def exited(self, exit: Exit) -> None:
        self.failure = f"status {exit.shell_status}" if exit.shell_status else ""
        self.ended.set()

    def failed(self, reason: str) -> None:
        self.failure = reason
        self.ended.set()


@pytest.fixture(scope="module")
def saved_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Path]]:
    """A machine that runs on, and a snapshot of it."""
    folder = tmp_path_factory.mktemp("snapshots") / "one"
    with Machine(CONFIG) as machine:
        session = Session(machine, b"echo -n '" + NONCE.replace(b"'", b"'\\''") + b"' > /tmp/nonce")
        machine.start()
        assert session.ended.wait(linux_patience())
        assert not session.failure
        machine.save(folder)
        yield machine, folder


@pytest.fixture
def snapshot(saved_machine: tuple[Machine, Path]) -> Path:
    return saved_machine[1]


def run(snapshot: Path, command: str, *disks: pykvm.DiskConfig) -> bytes:
    """The output of ``command`` in a restored guest."""
    config = pykvm.MachineConfig(guest="guest", agent=True, console="none", disks=disks)
    with Machine(config, snapshot=snapshot) as machine:
        result = pykvm.run_command(machine, command, timeout=linux_patience())
    assert (result.status, result.stderr) == (0, b""), result
    return result.stdout


def test_a_restored_guest_has_its_memory_and_has_not_booted(snapshot: Path) -> None:
    with Machine(CONFIG, snapshot=snapshot) as machine:
        result = pykvm.run_command(machine, "cat /tmp/nonce", timeout=linux_patience())
    assert (result.stdout, result.status) == (NONCE, 0)
    assert b"Linux version" not in machine.console_output


def test_the_saved_guest_goes_on(saved_machine: tuple[Machine, Path]) -> None:
    machine, _ = saved_machine
    assert machine.status is pykvm.RunState.RUNNING
    session = Session(machine, b"test -s /tmp/nonce")
    # The client is new, and the agent is not.
    session.client.wake(time.time_ns(), bytes(32), False)
    assert session.ended.wait(linux_patience())
    assert not session.failure


def test_guests_of_one_snapshot_share_nothing(snapshot: Path) -> None:
    with Machine(CONFIG, snapshot=snapshot) as one, Machine(CONFIG, snapshot=snapshot) as two:
        command = "echo mine >> /tmp/nonce; wc -l < /tmp/nonce; head -c 16 /dev/urandom | md5sum"
        results = []
        threads = [
            threading.Thread(
                target=lambda m=m: results.append(
                    pykvm.run_command(m, command, timeout=linux_patience())
                )
            )
            for m in (one, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [result.stdout.splitlines() for result in results]
    assert [line[0] for line in lines] == [b"1", b"1"]
    assert lines[0][1] != lines[1][1], "both have the same random numbers"
    assert run(snapshot, "cat /tmp/nonce") == NONCE


def test_the_clock_is_set(snapshot: Path) -> None:
    before = int(time.time())
    assert before <= int(run(snapshot, "date +%s")) <= int(time.time()) + 1


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_restored_guest_finds_its_new_disks(snapshot: Path, tmp_path: Path, packed: bool) -> None:
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    for number, image in enumerate(images):
        image.write_bytes(b"disk %d\n" % number + bytes((1 << 20) - 7))
    disks = [pykvm.DiskConfig(image, packed=packed) for image in images]
    command = "head -n 1 /dev/vda; head -n 1 /dev/vdb; echo written > /dev/vdb; sync"
    assert run(snapshot, command, *disks) == b"disk 0\ndisk 1\n"
    assert images[1].read_bytes().startswith(b"written\n")


def test_a_paused_machine_stays_paused(snapshot: Path, tmp_path: Path) -> None:
    with Machine(CONFIG, snapshot=snapshot) as machine:
        machine.start()
        machine.pause()
        machine.save(tmp_path / "again")
        assert machine.status is pykvm.RunState.PAUSED
    assert run(tmp_path / "again", "cat /tmp/nonce") == NONCE


def test_a_machine_that_does_not_run_is_not_saved(snapshot: Path, tmp_path: Path) -> None:
    with Machine(CONFIG, snapshot=snapshot) as machine:
        with pytest.raises(pykvm.UsageError, match="does not run"):
            machine.save(tmp_path / "new")
        machine.start()
        with pytest.raises(pykvm.SnapshotError, match="exists already"):
            machine.save(snapshot)
        assert machine.status is pykvm.RunState.RUNNING
    assert not (tmp_path / "new").exists()


def test_a_machine_with_an_image_goes_on_only_while_nobody_has_changed_it(
    snapshot: Path, tmp_path: Path
) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(b"before\n" + bytes((1 << 20) - 7))
    config = pykvm.MachineConfig(guest="guest", agent=True, console="none", disks=[image])
    with Machine(config, snapshot=snapshot) as machine:
        machine.start()
        machine.pause()
        machine.save(tmp_path / "with-disk")
        with machine.snapshot() as taken, pytest.raises(pykvm.UsageError, match="cannot go back"):
            machine.reset(taken)
    with pytest.raises(pykvm.UsageError, match="has disks with images"):
        Machine(CONFIG, snapshot=tmp_path / "with-disk")
    with Machine(config, snapshot=tmp_path / "with-disk") as machine:
        result = pykvm.run_command(machine, "head -n 1 /dev/vda", timeout=linux_patience())
        assert (result.stdout, result.status) == (b"before\n", 0), result
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(pykvm.SnapshotError, match="has changed since the snapshot was taken"):
        Machine(config, snapshot=tmp_path / "with-disk")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("ram", lambda data: data[:-4096], "ram has"),
        ("manifest.json", lambda data: data.replace(b'"format": 3', b'"format": 4'), "format 4"),
        (
            "manifest.json",
            lambda data: data.replace(b'"hex": "', b'"hex": "00')[:-1],
            "not the JSON",
        ),
        ("state.json", lambda data: data[:-100], "not the JSON"),
        ("state.json", lambda data: b"[" * 100_000, "not the JSON"),
        ("state.json", lambda data: data.replace(b'"lapic"', b'"lapik"'), "lapic is missing"),
    ],
)
def test_a_damaged_snapshot_is_refused(
    snapshot: Path, tmp_path: Path, name: str, change, reason: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(snapshot, copy)
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    with pytest.raises(pykvm.SnapshotError, match=reason):
        Machine(CONFIG, snapshot=copy)


def test_a_snapshot_of_a_different_processor_is_refused(snapshot: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(snapshot, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["cpuid"]["hex"] = "00" * 32
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pykvm.SnapshotError, match="a different processor"):
        Machine(CONFIG, snapshot=copy)


@pytest.mark.parametrize("options", [{"cpus": 1, "memory": "80M"}, {"append": "quiet"}])
def test_a_snapshot_of_a_different_guest_is_refused(
    snapshot: Path, options: dict[str, str]
) -> None:
    config = pykvm.MachineConfig(guest="guest", agent=True, console="none", **options)
    with pytest.raises(pykvm.SnapshotError, match="a different guest, or to other options"):
        Machine(config, snapshot=snapshot)


def test_the_command_line_boots_once(boot, tmp_path: Path) -> None:
    folder, image = tmp_path / "booted", tmp_path / "d.img"
    image.write_bytes(b"first\n" + bytes((1 << 20) - 6))
    command = ["--snapshot", str(folder), "--disk", str(image), "--exec"]
    first = boot(*command, "head -n 1 /dev/vda; exit 3", check=3)
    assert first.stdout == b"first\n"
    assert first.stderr == f"pykvm: booting the guest once for the snapshot {folder} …\n".encode()
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(made) == {"manifest.json", "state.json", "ram"}
    second = boot(*command, "cat; head -n 1 /dev/vda", stdin=b"input\n")
    assert (second.stdout, second.stderr) == (b"input\nfirst\n", b"")
    assert made == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_command_line_says_what_does_not_fit(boot, snapshot: Path, tmp_path: Path) -> None:
    assert b"--snapshot needs --exec" in boot("--snapshot", str(snapshot), check=2).stderr
    other = boot("-m", "80M", "--snapshot", str(snapshot), "--exec", "true", check=125)
    assert b"belongs to a different guest, or to other options" in other.stderr
    shared = boot(
        "-m", "64M,shared=on", "--snapshot", str(tmp_path / "new"), "--exec", "true", check=2
    )
    assert b"shared memory has no snapshots" in shared.stderr
    missing = tmp_path / "missing" / "booted"
    failed = boot("--snapshot", str(missing), "--exec", "true", check=125)
    assert b"cannot be written: no such file or directory" in failed.stderr
    assert b"booting" not in failed.stderr


def test_a_guest_that_panics_is_not_saved(tmp_path: Path) -> None:
    config = pykvm.MachineConfig(
        guest="guest", agent=True, console="none", append="init=/none rdinit=/none"
    )
    with pytest.raises(pykvm.PykvmError, match=r"did not boot: .*panic") as caught:
        pykvm.save_booted(config, tmp_path / "booted", timeout=linux_patience())
    assert caught.value.exit_status == 126
    assert list(tmp_path.iterdir()) == []
