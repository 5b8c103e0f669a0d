"""The names of threads as the system shows them."""

import threading
from pathlib import Path

from pykvm.threads import show_thread_name


def visible_after(name: str) -> str:
    """What a thread of its own is called once it has shown ``name``."""
    seen = []

    def run() -> None:
        show_thread_name(name)
        seen.append(Path("/proc/thread-self/comm").read_text())

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
