"""Threads as the system sees them: their names, and the CPUs that they run on."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.values import parse_cpus
from pykvm.host.threads import MAX_CPUS, cpu_list, run_on, show_thread_name, usable_cpus


def visible_after(name: str) -> str:
    """The visible name of a new thread once it has shown ``name``."""
    seen = []

    def run() -> None:
        show_thread_name(name)
        seen.append(os.fsdecode(Path("/proc/thread-self/comm").read_bytes()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen[0].rstrip("\n")


def test_a_name_is_shown():
    before = Path("/proc/self/comm").read_text()
    assert visible_after("pykvm-vcpu0") == "pykvm-vcpu0"
    assert Path("/proc/self/comm").read_text() == before


def test_a_long_name_is_cut():
    assert visible_after("virtio-blk /tmp/disk.img") == "virtio-blk /tmp"


def test_a_name_need_not_be_utf_8():
    name = os.fsdecode(b"d\xff.img")
    assert visible_after(name) == name


def affinity_after(cpus: set[int]) -> set[int]:
    """Where a thread of its own may run once it has been told to run on ``cpus``."""
    seen = []

    def run() -> None:
        run_on(cpus)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen[0]


def test_a_thread_runs_on_its_cpus():
    before = os.sched_getaffinity(0)
    for cpu in usable_cpus():
        assert affinity_after({cpu}) == {cpu}
    assert os.sched_getaffinity(0) == before
    assert affinity_after(set()) == before


def test_a_narrow_affinity_does_not_hide_usable_cpus():
    usable = usable_cpus()
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert usable_cpus() == usable
        assert os.sched_getaffinity(0) == {min(usable)}
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cpus", "text"),
    [({0}, "0"), ({0, 1}, "0-1"), ({3, 0, 1, 2, 6}, "0-3,6"), ({1, 3, 5}, "1,3,5")],
)
def test_cpus_are_shown_as_ranges(cpus, text):
    assert cpu_list(cpus) == text


@given(st.sets(st.integers(0, MAX_CPUS - 1), min_size=1))
def test_shown_cpus_can_be_parsed_again(cpus):
    assert parse_cpus(cpu_list(cpus)) == cpus
