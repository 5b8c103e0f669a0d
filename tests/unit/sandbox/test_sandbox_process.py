"""A confined process: the allowed and the forbidden actions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sandbox_attempts
from patience import patience
from sandbox_attempts import prepare

from pykvm.errors import HostError
from pykvm.sandbox import landlock, seccomp


def problem() -> str:
    """Why this host cannot confine a process fully, or ""."""
    try:
        seccomp.check()
        version = landlock.version()
    except HostError as error:
        return error.message
    return "" if version >= 4 else "Landlock knows no TCP here"


pytestmark = pytest.mark.skipif(bool(problem()), reason=problem())


def attempted(folder: Path, part: str) -> dict[str, dict[str, str]]:
    """The result of each attempt on ``folder``, by group. The allowed actions have worked."""
    prepare(folder)
    command = [sys.executable, "-W", "ignore", sandbox_attempts.__file__, str(folder), part]
    done = subprocess.run(command, capture_output=True, timeout=patience(), check=True)
    assert done.stderr == b""
    found = json.loads(done.stdout)
    needed = found.pop("needed")
    assert len(needed) > 5
    assert set(needed.values()) == {"done"}, needed
    assert len(found["files"]) > 10
    assert len(found["calls"]) > 5
    return found


ENDS_WITH_THREADS = """
import threading, time
from pykvm.sandbox import confine
def work():
    while True:
        time.sleep(0.0002)
confine(insist=True)
for _ in range(8):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.02)
"""


def test_a_process_may_end_while_threads_run():
    """Python cancels them, and for that the C library needs libgcc_s."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WITH_THREADS],
        check=False,
        capture_output=True,
        timeout=patience(),
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_attempt_succeeds_without_the_sandbox(tmp_path):
    """So a refusal in the other tests comes from the sandbox."""
    for group in attempted(tmp_path, "none").values():
        assert set(group.values()) <= {"done"}, group


def test_no_attempt_succeeds_in_the_sandbox(tmp_path):
    found = attempted(tmp_path, "both")
    for group in found.values():
        assert set(group.values()) <= {"EPERM", "EACCES"}, group
    assert len(found["desperate"]) == 3
    assert (tmp_path / "file").read_text() == "secret"


def test_landlock_alone_keeps_files_and_programs_out_of_reach(tmp_path):
    found = attempted(tmp_path, "landlock")
    assert set(found["files"].values()) == {"EACCES"}, found["files"]
    assert set(found["io_uring"].values()) <= {"EACCES"}
    assert found["desperate"]["become a program"] == "EACCES"


def test_the_seccomp_filter_alone_refuses_every_attempt_by_system_call(tmp_path):
    found = attempted(tmp_path, "seccomp")
    # It does not see paths: whoever may remove the monitor's socket may remove any file.
    assert found["files"].pop("remove a file") == "done"
    assert set(found["io_uring"].values()) <= {"done"}
    for group in (found["files"], found["calls"], found["desperate"]):
        assert set(group.values()) == {"EPERM"}, group
