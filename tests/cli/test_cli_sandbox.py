"""``pykvm boot --sandbox``: whole confined runs, with the bare guest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sandbox_attempts
from patience import patience
from sandbox_attempts import prepare
from sandbox_here import sandbox_problem

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.cli.main import main
from pykvm.host.io_uring import problem as io_uring_problem

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(bool(sandbox_problem()), reason=sandbox_problem()),
]

HARNESS = """
import os, sys
from pykvm.cli.main import main
{patch}
sys.exit(main(["boot", *sys.argv[1:]], own_process=True))
"""

ATTEMPTS = """
import json
from pathlib import Path
sys.path.insert(0, {tests!r})
from sandbox_attempts import (
    by_io_uring, by_system_calls, for_the_desperate, on_files, outcomes
)
from pykvm.cli.boot.output import ConsoleRecorder
folder = Path({folder!r})
attempts = by_io_uring(folder) | on_files(folder) | by_system_calls() | for_the_desperate()
def take_over(self, data):
    if attempts:
        found = outcomes(attempts)
        attempts.clear()
        os.write(2, json.dumps(found).encode())
ConsoleRecorder.__call__ = take_over
"""

WATCH_IMPORTS = """
import atexit
from pykvm.cli.boot import run
def confine(*arguments, confine=run._confine):
    held = confine(*arguments)
    known = set(sys.modules)
    atexit.register(lambda: os.write(2, f"later: {sorted(set(sys.modules) - known)}".encode()))
    os.write(2, b"rings, " if "pykvm.host.io_uring" in known else b"no rings, ")
    return held
run._confine = confine
"""

NO_LANDLOCK = """
from pykvm.sandbox import landlock
from pykvm.errors import HostError
def restrict(removable, writable):
    raise HostError("Landlock is not available: this kernel has none")
landlock.restrict = restrict
"""


def boot(kernel: Path, *options: str, patch: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run ``pykvm boot`` in a process of its own, after ``patch``."""
    command = [sys.executable, "-W", "ignore", "-c", HARNESS.format(patch=patch)]
    command += ["--kernel", str(kernel), *options]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience(), check=False
    )


def test_code_in_a_vcpu_thread_cannot_leave_the_sandbox(bare_kernel, tmp_path):
    prepare(tmp_path)
    takeover = attempts(tmp_path)
    done = boot(bare_kernel, "--append", "hello 0", "--sandbox=on", patch=takeover)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr)
    assert len(found) > 20
    assert set(found.values()) <= {"EPERM", "EACCES"}
    assert (tmp_path / "file").read_text() == "secret"


def test_off_is_off(bare_kernel, tmp_path):
    prepare(tmp_path)
    takeover = attempts(tmp_path) + "del attempts['become a program']\n"
    done = boot(bare_kernel, "--append", "hello 0", "--sandbox=off", patch=takeover)
    assert done.returncode == 0
    assert json.loads(done.stderr)["read a file"] == "done"


DISK = ["--initrd={folder}/script", "--append=script"]
RUNS = {
    "a disk": [*DISK, "--disk={image}"],
    "a disk on a ring": [*DISK, "--disk={image},cache=none,engine=io_uring"],
    "a disk on a ring, by default": [*DISK, "--disk={image},cache=none"],
    "a disk on threads": [*DISK, "--disk={image},engine=threads"],
    "a disk with faults": [*DISK, "--disk={image},faults={folder}/faults"],
    "a disk that looks for zeroes": [*DISK, "--disk={image},detect-zeroes=unmap"],
    "a disk of several queues": [*DISK, "--disk={image},num-queues=2,cpu-affinity=0"],
    "a snapshot": [*DISK, "--disk={image},snapshot=on"],
    "a monitor and all outputs": [
        *(*DISK, "--disk={image}", "--monitor={folder}/qmp", "--trace={folder}/trace"),
        *("--console-log={folder}/log", "--timings", "--json"),
    ],
}


def attempts(folder: Path) -> str:
    """A patch that makes the attempts on ``folder`` in the vCPU's thread."""
    tests = str(Path(sandbox_attempts.__file__).parent)
    return ATTEMPTS.format(tests=tests, folder=str(folder))


@pytest.fixture(scope="module")
def script() -> bytes:
    """Reads, writes, flushes; resets the disk, and reads once more."""
    made = Script()
    driver = BlockDriver(made)
    for _ in range(2):
        driver.start()
        requests = [BlockRequest.read(0, 4096), BlockRequest.write(8, bytes(4096))]
        driver.submit([*requests, BlockRequest.flush()])
    return made.encode()


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_nothing_is_imported_once_confined(bare_kernel, tmp_path, script, options):
    """It could not be. Whatever a disk is made of, it starts twice."""
    if "io_uring" in "".join(options) and io_uring_problem():
        pytest.skip(io_uring_problem())
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    (tmp_path / "script").write_bytes(script)
    (tmp_path / "faults").write_text('[[fault]]\noperation = "read"\ndelay_ms = 1\n')
    rings = b"rings" if "cache=none" in "".join(options) else b"no rings"
    options = [option.format(image=image, folder=tmp_path) for option in options]
    done = boot(bare_kernel, *options, "--sandbox=on", "--stats=-", patch=WATCH_IMPORTS)
    assert done.stderr.endswith(b"later: []"), done.stderr
    assert done.stderr.startswith(rings), "only who wants io_uring may use it"
    assert done.returncode == 0, done.stderr
    assert b"rd_operations=2 wr_operations=2 flush_operations=2" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "qmp").exists()


def test_a_missing_part_of_the_sandbox_is_reported(bare_kernel):
    done = boot(bare_kernel, "--append", "hello 0", patch=NO_LANDLOCK)
    assert (done.returncode, done.stderr) == (0, b"")
    done = boot(bare_kernel, "--append", "hello 0", "--timings", "--json", patch=NO_LANDLOCK)
    assert b"no_new_privs, seccomp; Landlock is not available" in done.stderr
    parts = json.loads(done.stdout)["sandbox"]
    assert "this kernel has none" in parts.pop("landlock")
    assert parts == {"limits": "", "no_new_privs": "", "seccomp": ""}


def test_sandbox_on_does_not_run_without_a_part(bare_kernel):
    done = boot(bare_kernel, "--append", "hello 0", "--sandbox=on", patch=NO_LANDLOCK)
    assert done.returncode == 77
    assert done.stdout == b""
    assert b"--sandbox=on: Landlock is not available" in done.stderr
    assert b"pykvm doctor" in done.stderr


def test_the_kernel_says_that_every_thread_is_confined(bare_kernel, tmp_path):
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    command = [sys.executable, "-m", "pykvm", "boot", "--kernel", str(bare_kernel)]
    command += ["--append", "echo", "--disk", str(tmp_path / "disk.img"), "--monitor"]
    with subprocess.Popen(
        [*command, str(tmp_path / "qmp")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        states = [(task / "status").read_text() for task in tasks]
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        process.terminate()
    assert len(states) > 3
    for state in states:
        assert "NoNewPrivs:\t1\n" in state
        assert "Seccomp:\t2\n" in state
    assert next(line.split()[4:6] for line in limits.splitlines() if "core" in line) == ["0", "0"]


def test_a_calling_program_is_not_confined(bare_kernel, capfd, tmp_path):
    old = tmp_path / "old"
    old.write_text("of the last run")
    kernel = ["boot", "--kernel", str(bare_kernel), "--append", "hello 0"]
    assert main([*kernel, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sandbox"] is None
    assert main([*kernel, "--sandbox=on", "--stats", str(old)]) == 2
    assert "confine the calling program" in capfd.readouterr().err
    assert old.read_text() == "of the last run"
