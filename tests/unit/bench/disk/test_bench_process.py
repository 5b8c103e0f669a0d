"""A process's processor time and memory, seen from outside."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.bench.disk.noise import Noise, Usage, noise_between, parse_stat
from pykvm.bench.disk.tools.process import ProcessView
from pykvm.host.threads import show_thread_name

BURN = "import time\nwhile time.process_time() < 0.1: pass"


def burn(seconds: float, clock: Callable[[], float]) -> None:
    """Use up processor time on ``clock``."""
    end = clock() + seconds
    while clock() < end:
        pass


def test_vcpu_threads_are_distinguished():
    steps = [threading.Event() for _ in range(4)]

    def run() -> None:
        show_thread_name("test-vcpu0")
        steps[0].set()
        steps[1].wait()
        burn(0.05, time.thread_time)
        steps[2].set()
        steps[3].wait()

    thread = threading.Thread(target=run)
    thread.start()
    steps[0].wait()
    view = ProcessView(os.getpid(), "test-vcpu")
    times = [view.cpu_time()]
    burn(0.05, time.thread_time)
    times.append(view.cpu_time())
    steps[1].set()
    steps[2].wait()
    times.append(view.cpu_time())
    steps[3].set()
    thread.join()
    ours, theirs = times[1] - times[0], times[2] - times[1]
    assert ours.whole >= 0.05
    assert ours.vcpus < 0.04
    assert theirs.whole >= theirs.vcpus >= 0.05


def test_our_own_work_is_no_noise():
    before = Usage(clock=100, busy=1000, own=10, stolen=5)
    assert noise_between(before, Usage(110, 1015, 22, 6)) == Noise(others=0.3, stolen=0.1)
    assert noise_between(before, Usage(110, 1009.99, 20, 5)) == Noise(others=0, stolen=0)


def test_busy_loops_are_reported_but_are_not_noise():
    before = Usage(clock=100, busy=1000, own=10, stolen=5, loops=3)
    found = noise_between(before, Usage(110, 1015, 12, 5, 12))
    assert found == Noise(others=pytest.approx(0.4), stolen=0, busy=0.9)


def test_own_use_includes_children():
    before = Usage.now()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    after = Usage.now()
    assert after.own - before.own >= 0.1
    assert after.clock > before.clock
    assert after.busy >= before.busy


def test_the_first_line_of_stat():
    text = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    assert parse_stat(text) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert str(Noise(0.5, 0)).startswith("meanwhile other programs used 0.50 of ")
    assert str(Noise(0.5, 0.1)).endswith(" CPUs, and the host's hypervisor withheld 0.10")


def test_a_process_that_is_gone():
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        view = ProcessView(child.pid, "none")
        assert view.cpu_time().whole >= 0
    assert not Path(f"/proc/{child.pid}").exists()
    with pytest.raises(OSError, match="Invalid argument"):
        view.cpu_time()
    with pytest.raises(OSError, match="No such file"):
        view.memory(0, 0)
