"""A guest of a test, without a guest."""

import time
from types import SimpleNamespace
from typing import Any

from pykvm.pytest_plugin.spec import merged
from pykvm.pytest_plugin.watched import Watched
from pykvm.trace.log import TraceLog


def test_the_boot_of_a_guest_comes_after_the_begin():
    booted = 0

    def make(trace: TraceLog | None) -> Any:
        nonlocal booted
        booted = time.monotonic_ns()
        return SimpleNamespace(disks=[], timeout=1.0, close=lambda: None)

    place: Any = SimpleNamespace(give_back=lambda: None)
    watched = Watched(merged([], ()), make, place, traced=True)
    assert 0 < watched.began <= booted
