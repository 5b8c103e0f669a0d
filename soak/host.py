"""Simulates hosts that lack some of this host's features."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from pykvm.devices.virtio_blk.image.allocation import Allocation
from soak.scenario import LARGE_FILE


class NoHoles(Allocation):
    """The allocation of a host that cannot make holes in a file."""

    def mode(self, discard: bool, unmap: bool) -> int:
        """See Allocation."""
        return 0

    def _ask(self, request: int, offset: int, length: int) -> int:
        return errno.EOPNOTSUPP


@contextmanager
def small_files() -> Iterator[None]:
    """In this context, no file of this process can become larger than LARGE_FILE."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE_FILE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
