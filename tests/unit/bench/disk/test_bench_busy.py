"""Busy loops compute until the end of their block, and no longer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import patience

from pykvm.bench.disk.busy import busy_loops
from pykvm.errors import PykvmError

OWNER = """
import time
from pykvm.bench.disk.busy import busy_loops
with busy_loops(2):
    print(open("/proc/thread-self/children").read(), flush=True)
    time.sleep(600)
"""


def children() -> set[str]:
    """The processes that this thread has started."""
    return set(Path("/proc/thread-self/children").read_text().split())


def running(pid: str) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_they_compute_until_the_end_of_the_block():
    before = children()
    with busy_loops(2) as loops:
        assert len(loops) == 2
        made = children() - before
        assert len(made) == 2
        first = loops.cpu_time()
        deadline = time.monotonic() + patience()
        while loops.cpu_time() < first + 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for pid in made:
            assert os.sched_getaffinity(int(pid)) == os.sched_getaffinity(0)
            assert os.getpriority(os.PRIO_PROCESS, int(pid)) == os.getpriority(os.PRIO_PROCESS, 0)
    assert children() == before


def test_none():
    before = children()
    with busy_loops(0) as loops:
        assert (len(loops), loops.cpu_time(), children()) == (0, 0, before)


def test_a_killed_busy_loop_is_an_error():
    before = children()
    with busy_loops(1) as loops:
        (pid,) = children() - before
        os.kill(int(pid), signal.SIGKILL)
        deadline = time.monotonic() + patience()
        while running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(PykvmError, match="ended a busy loop of --busy; measure again"):
            loops.cpu_time()


def test_they_die_with_a_process_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        try:
            loops = owner.stdout.readline().decode().split()
            assert len(loops) == 2
            assert all(map(running, loops))
        finally:
            owner.kill()
    deadline = time.monotonic() + patience()
    try:
        while any(map(running, loops)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for pid in filter(running, loops):
            os.kill(int(pid), signal.SIGKILL)
