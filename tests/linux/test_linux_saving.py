"""``pykvm snapshot``: a Linux guest that is saved while it runs, and goes on elsewhere."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from patience import linux_patience

import pykvm
from pykvm.cli.main import main

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

PYKVM = [sys.executable, "-m", "pykvm"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of a confined guest, taken while its shell reads a script."""
    folder = tmp_path_factory.mktemp("saved")
    command = [*PYKVM, "boot", "guest", "--monitor", str(folder / "qmp"), "--save-in", str(folder)]
    command += ["--timeout", str(linux_patience())]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    watch = threading.Timer(linux_patience(), run.kill)
    watch.start()
    try:
        assert run.stdin
        assert run.stdout
        run.stdin.write(b"kept='only in memory'; echo ready\n")
        run.stdin.flush()
        assert run.stdout.readline() == b"ready\n"
        assert main(["snapshot", "save", str(folder / "qmp"), str(folder / "one")]) == 0
        run.stdin.write(b"echo on\n")
        assert run.communicate()[0] == b"on\n"
        assert run.returncode == 0
    finally:
        watch.cancel()
        run.kill()
        run.communicate()
    return folder / "one"


def restore(folder: Path, *options: str, script: bytes) -> "subprocess.CompletedProcess[bytes]":
    command = [*PYKVM, "snapshot", "restore", str(folder), "--timeout", str(linux_patience())]
    command += options  # the last --timeout counts
    return subprocess.run(
        command, input=script, capture_output=True, check=False, timeout=linux_patience(170)
    )


def test_a_saved_shell_goes_on(saved: Path) -> None:
    for word in (b"one", b"two"):
        done = restore(saved, script=b'echo "$kept ' + word + b'"; exit 4\n')
        assert done.stdout == b"only in memory " + word + b"\n"
        assert (done.returncode, done.stderr) == (4, b"")


def test_a_shell_without_an_agent_takes_no_command(saved: Path) -> None:
    done = restore(saved, "--exec", "true", script=b"")
    assert done.returncode == 2
    assert b"was booted without its agent, so it takes no command; write to its" in done.stderr


def test_a_booted_guest_takes_commands_and_disks(boot, tmp_path: Path) -> None:
    folder, image = tmp_path / "booted", tmp_path / "d.img"
    image.write_bytes(b"first\n" + bytes((1 << 20) - 6))
    boot("-m", "72M", "--snapshot", str(folder), "--exec", "true")
    done = restore(folder, "--disk", str(image), "--exec", "head -n 1 /dev/vda; exit 5", script=b"")
    assert (done.stdout, done.returncode) == (b"first\n", 5)


def test_a_guest_without_a_program_on_its_console_gets_a_shell_there(tmp_path: Path) -> None:
    """The sandbox closes before the disk's threads start."""
    with pykvm.boot(disks=["1M"], timeout=linux_patience()) as guest:
        guest.run("echo kept > /tmp/file && echo hello > /dev/vda && sync")
        with guest.snapshot() as snapshot:
            snapshot.save(tmp_path / "saved")
    script = b"cat /tmp/file; head -c 5 /dev/vda; tty\n"
    done = restore(tmp_path / "saved", "--sandbox=on", script=script)
    assert b"kept\r\nhello/dev/ttyS0\r\n" in done.stdout
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_guest_that_an_error_had_stopped_tries_again(tmp_path: Path) -> None:
    disk = pykvm.DiskConfig(blank="1M", werror=pykvm.ErrorPolicy.STOP)
    with pykvm.boot(disks=[disk], timeout=linux_patience()) as guest:
        guest.disks[0].faults.add(pykvm.Fault(operation="write", errno="ENOSPC"))
        guest.popen("echo hello > /dev/vda; sync")
        guest.wait_stopped()
        with guest.snapshot() as snapshot:
            snapshot.save(tmp_path / "saved")
    done = restore(tmp_path / "saved", "--exec", "sync; head -c 5 /dev/vda", script=b"")
    assert (done.stdout, done.returncode, done.stderr) == (b"hello", 0, b"")
