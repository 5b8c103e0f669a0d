"""Busy loops beside a measurement, so that anyone can repeat a measurement on a busy host."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from pykvm.bench.disk.tools.child import running
from pykvm.bench.disk.tools.process import cpu_seconds
from pykvm.errors import PykvmError

BUSY_MAX: Final = 64
_LOOP: Final = ("/bin/sh", "-c", "while :; do :; done")
"""Not Python: the memory that such a loop shares with pykvm would not count as pykvm's."""


class BusyLoops:
    """See :func:`busy_loops`."""

    def __init__(self, children: Sequence["subprocess.Popen[bytes]"]) -> None:
        self._children = children

    def __len__(self) -> int:
        return len(self._children)

    def cpu_time(self) -> float:
        """The processor time of all loops in seconds; PykvmError if one has ended."""
        if any(child.poll() is not None for child in self._children):
            raise PykvmError("another program has ended a busy loop of --busy", "measure again")
        return sum(cpu_seconds(child.pid) for child in self._children)


@contextmanager
def busy_loops(count: int) -> Iterator[BusyLoops]:
    """``count`` processes that compute for ever, with this process's priority and CPUs.

    They end at the end of the block, and also if this process is killed.
    """
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        children = [stack.enter_context(running(_LOOP, errors)) for _ in range(count)]
        yield BusyLoops(children)
