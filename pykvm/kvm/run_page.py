"""The kvm_run area that a vCPU shares with the kernel."""

import mmap

from pykvm.kvm.native import ffi
from pykvm.lean.typing_names import Any

MMIO_DATA = ffi.offsetof("struct kvm_run", "mmio", "data")
"""Offset of kvm_run.mmio.data: 8 bytes."""


class RunPage:
    """Owns the mapping of one vCPU's kvm_run area.

    ``run`` is the ``struct kvm_run`` and ``bytes`` the whole area, whose tail
    holds port data. After :meth:`close`, ``bytes`` raises ValueError and
    ``run`` is gone.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED)
        self._buffer = ffi.from_buffer(self._map)
        self.run: Any = ffi.cast("struct kvm_run *", self._buffer)
        self.bytes = memoryview(self._map)

    def close(self) -> None:
        """Unmap the area. Views of parts of ``run`` must not be used any more."""
        self.run = None
        self.bytes.release()
        ffi.release(self._buffer)
        self._map.close()
