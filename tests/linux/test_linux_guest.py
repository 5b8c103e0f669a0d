"""The library's guest, with a real Linux."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_kernel import own_kernel
from patience import ends, in_thread, linux_patience

import pykvm

pytestmark = [pytest.mark.kvm, pytest.mark.linux]


@pytest.fixture(scope="module")
def guest() -> Iterator[pykvm.Guest]:
    """One guest for all tests that leave it as it was."""
    with pykvm.boot(timeout=linux_patience()) as guest:
        yield guest


@pytest.fixture
def own() -> Iterator[pykvm.Guest]:
    """A guest for one test."""
    with pykvm.boot(disks=[], timeout=linux_patience()) as guest:
        yield guest


def test_a_command_and_its_result(guest: pykvm.Guest) -> None:
    result = guest.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert result.seconds > 0


def test_arguments_are_not_for_a_shell(guest: pykvm.Guest) -> None:
    assert guest.run(["echo", "$HOME  x", "*"]).text == "$HOME  x *"


def test_environment_folder_and_input(guest: pykvm.Guest) -> None:
    command = "echo $A; pwd; cat; echo $PATH | grep -c /bin"
    result = guest.run(command, env={"A": "1 2"}, cwd="/tmp", input=b"in\n")
    assert result.text.splitlines() == ["1 2", "/tmp", "in", "1"]


def test_a_failure_raises(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.CommandFailed, match="No such file") as failed:
        guest.run("ls /nowhere")
    assert failed.value.result.status == 1


def test_a_signal(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.CommandFailed) as failed:
        guest.run("kill -9 $$")
    assert (failed.value.result.signal, failed.value.result.status) == (signal.SIGKILL, 137)


def test_a_command_that_takes_too_long_is_killed_and_the_guest_goes_on(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.GuestTimeout):
        guest.run("echo $$ > /tmp/pid; sleep 1000", timeout=1)
    guest.run("while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done")


def test_lines_of_a_running_command_and_its_input(guest: pykvm.Guest) -> None:
    with guest.popen("while read line; do echo got $line; done; exit 2") as process:
        process.stdin.write(b"one\n")
        assert process.stdout.readline() == b"got one\n"
        process.stdin.write(b"two\n")
        assert process.stdout.readline() == b"got two\n"
        process.stdin.close()
        assert process.wait(check=False).status == 2


def test_many_commands_at_once(guest: pykvm.Guest) -> None:
    results = []
    threads = [
        in_thread(lambda n=n: results.append(guest.run(f"sleep 0.2; echo {n}").text))
        for n in range(8)
    ]
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(n) for n in range(8)]


def test_output_that_nobody_reads_holds_up_one_command_only(guest: pykvm.Guest) -> None:
    with guest.popen("yes") as process:
        assert guest.run("echo meanwhile").text == "meanwhile"
        assert process.stdout.read(6) == b"y\ny\ny\n"


def test_files_there_and_back(guest: pykvm.Guest, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8
    script = tmp_path / "script"
    script.write_bytes(b"#!/bin/sh\necho run with $1\n")
    script.chmod(0o755)
    guest.push(data, "/tmp/data", 0o600)
    guest.push(script, "/tmp/script")
    assert guest.run(["/tmp/script", "this"]).text == "run with this"
    assert guest.pull("/tmp/data") == data
    assert guest.pull("/tmp/data", tmp_path / "copy") is None
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    with pytest.raises(pykvm.GuestError, match="/tmp/none: No such file or directory"):
        guest.pull("/tmp/none")
    with pytest.raises(pykvm.GuestError, match="/none/x: No such file or directory"):
        guest.push(data, "/none/x")


def test_the_kernels_messages(guest: pykvm.Guest) -> None:
    assert "Linux version" in guest.dmesg()


def test_a_blank_disk_fails_when_told_to_while_the_guest_runs() -> None:
    with pykvm.boot(timeout=linux_patience()) as guest:
        (disk,) = guest.disks
        assert guest.run("cat /sys/block/vda/size").text == str((64 << 20) // 512)
        write = "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct"
        rule = disk.faults.add(pykvm.Fault(operation="write", nth=2, count=1, errno="EIO"))
        statuses = [guest.run(write, check=False).status for _ in range(3)]
        assert statuses == [0, 1, 0]
        assert rule.strikes == 1


def test_an_error_stops_the_guest_and_a_resume_tries_again() -> None:
    disk = pykvm.DiskConfig(blank="1M", werror="stop")
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        guest.disks[0].faults.add(pykvm.Fault(operation="write", count=1, errno="ENOSPC"))
        with guest.popen("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct") as process:
            error = guest.wait_stopped()
            assert (error.operation, error.full) == ("write", True)
            with pytest.raises(pykvm.GuestTimeout, match="an I/O error has stopped the guest"):
                process.wait(timeout=0)
            guest.resume()
            assert process.wait().status == 0


def test_disks_come_and_go_while_the_guest_runs(own: pykvm.Guest, tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(b"first\n" + bytes((1 << 20) - 6))
    disk = own.add_disk(image)
    assert own.run("head -n 1 /dev/vda").text == "first"
    own.run("echo second > /dev/vda; sync")
    own.remove_disk(disk)
    assert own.run("ls /dev/vda", check=False).status == 1
    assert image.read_bytes().startswith(b"second\n")
    own.add_disk("2M")
    assert own.run("cat /sys/block/vda/size").text == "4096"


def test_a_reset_takes_everything_back() -> None:
    with pykvm.boot(timeout=linux_patience()) as guest:
        guest.run("echo kept > /tmp/file; echo one > /dev/vda; sync")
        with guest.snapshot() as snapshot:
            guest.run("rm /tmp/file; echo two > /dev/vda; sync")
            process = guest.popen("sleep 1000")
            guest.reset()
            assert guest.run("cat /tmp/file; head -n 1 /dev/vda").text == "kept\none"
            with pytest.raises(pykvm.GuestError, match="'sleep 1000' failed: the guest was put"):
                process.wait()
            with pytest.raises(pykvm.GuestDied):
                guest.run("echo c > /proc/sysrq-trigger")
            guest.reset(snapshot)
            assert guest.run("cat /tmp/file; head -n 1 /dev/vda").text == "kept\none"


def test_files_arrive_whole_beside_snapshots_and_resets(own: pykvm.Guest) -> None:
    content = bytes(range(256)) * 512
    first = own.snapshot()
    stop = threading.Event()
    failures: list[str] = []

    def push() -> None:
        while not stop.is_set():
            try:
                own.push(content, "/tmp/file")
            except pykvm.GuestError as error:
                failures.append(str(error))
                stop.wait(0.01)

    thread = in_thread(push)
    for _ in range(5):
        own.snapshot().close()
    assert not failures
    for _ in range(5):
        own.reset(first)
    stop.set()
    assert ends(thread)
    assert all("the guest was put back" in failure for failure in failures)
    own.push(content, "/tmp/file")
    assert own.pull("/tmp/file") == content


def test_programs_find_their_own_memory_after_a_reset(own: pykvm.Guest) -> None:
    """The shell that waits in the snapshot had page tables of its own in the run that is undone."""
    with own.snapshot():
        own.run("y=$(seq 100000 140000); z=$y$y")
        own.reset()
        assert own.run("x=$(seq 1 30000); echo ${#x}").text == "168893"


def test_a_disk_whose_image_is_written_cannot_go_back(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(bytes(1 << 20))
    with pykvm.boot(disks=[image], timeout=linux_patience()) as guest, guest.snapshot():
        with pytest.raises(pykvm.UsageError) as refused:
            guest.reset()
        assert str(image) in str(refused.value)
        assert guest.run("echo on").text == "on"


def test_forks_share_nothing_and_differ_in_their_random_numbers(own: pykvm.Guest) -> None:
    own.run("echo before > /tmp/file")
    command = "echo $0 >> /tmp/file; cat /tmp/file; head -c 8 /dev/urandom | md5sum"
    with own.snapshot() as snapshot, snapshot.fork(3) as guests:
        texts = [
            one.run(["sh", "-c", command, str(number)]).text.splitlines()
            for number, one in enumerate(guests)
        ]
    assert [text[:-1] for text in texts] == [["before", str(number)] for number in range(3)]
    assert len({text[-1] for text in texts}) == 3


def test_a_run_can_be_repeated(own: pykvm.Guest) -> None:
    with own.snapshot() as snapshot:
        texts = []
        for _ in range(2):
            with snapshot.restore(entropy="same", clock=1_000_000_000) as fork:
                command = "date +%Y; head -c 8 /dev/urandom | md5sum"
                texts.append(fork.run(command).text.splitlines())
    assert texts[0] == texts[1]
    assert texts[0][0] == "2001"


def test_a_snapshot_in_a_folder(own: pykvm.Guest, tmp_path: Path) -> None:
    own.run("echo saved > /tmp/file")
    with own.snapshot() as snapshot:
        snapshot.save(tmp_path / "saved")
        manifest = snapshot.manifest
    with pykvm.Snapshot.open(tmp_path / "saved", timeout=linux_patience()) as opened:
        assert opened.manifest["id"] == manifest["id"]
        opened.verify()
        with opened.restore() as restored:
            assert restored.run("cat /tmp/file").text == "saved"
    with pytest.raises(pykvm.SnapshotError):
        pykvm.Snapshot.open(tmp_path / "none")


def test_a_saved_guest_keeps_its_blank_disk(tmp_path: Path) -> None:
    with pykvm.boot(timeout=linux_patience()) as guest:
        guest.run("echo on the disk > /dev/vda; sync")
        with guest.snapshot() as snapshot:
            assert snapshot.problem() is None
            snapshot.save(tmp_path / "saved")
    with pykvm.Snapshot.open(tmp_path / "saved", timeout=linux_patience()) as opened:
        assert opened.problem() is None
        with opened.restore() as restored:
            assert restored.run("head -n 1 /dev/vda").text == "on the disk"
    with pykvm.Snapshot.open(tmp_path / "saved", append="quiet") as opened:
        assert "belongs to a different guest" in opened.problem()


def test_nothing_stays_behind_when_the_interpreter_exits(tmp_path: Path) -> None:
    """Neither at a normal end, nor after an interrupt, nor in a forked child."""
    script = """
import os, signal, threading, pykvm
guest = pykvm.boot(disks=[])
child = os.fork()
if not child:
    try:
        guest.run("true")
    except pykvm.UsageError as error:
        print(error.message.partition(" belongs")[0], flush=True)
    raise SystemExit
os.waitpid(child, 0)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    guest.run("sleep 1000")
except KeyboardInterrupt:
    print(guest.run("echo the guest runs on").text)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=linux_patience(),
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["this guest", "the guest runs on"]


def test_a_guest_without_an_agent_has_a_console() -> None:
    with pykvm.boot(
        kernel=own_kernel(), disks=[], append="root=/none", timeout=linux_patience()
    ) as guest:
        assert guest.console.wait_for(r"Linux version (\S+)").group(1)
        with pytest.raises(pykvm.UsageError, match="has no agent"):
            guest.run("true")
        outcome = guest.wait()
        assert outcome.kind is pykvm.OutcomeKind.PANIC
        assert "Kernel panic - not syncing: VFS" in guest.console.text


def test_a_panic_ends_every_call_at_once_with_the_console(guest: pykvm.Guest) -> None:
    """The last test of this guest."""
    errors = []

    def wait() -> None:
        try:
            guest.console.wait_for("never")
        except pykvm.GuestDied as error:
            errors.append(error)

    thread = in_thread(wait)
    with pytest.raises(pykvm.GuestDied) as died:
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000")
    assert died.value.outcome.kind is pykvm.OutcomeKind.PANIC
    assert "sysrq triggered crash" in str(died.value)
    assert "sysrq: Trigger a crash" in died.value.console
    assert ends(thread)
    assert errors[0].outcome == died.value.outcome
