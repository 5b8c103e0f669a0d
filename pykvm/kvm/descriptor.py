"""A file descriptor of KVM, which has one owner, and ioctls on it."""

import os

from pykvm.kvm.errors import KvmError
from pykvm.kvm.native import ffi, libc
from pykvm.lean.records import record
from pykvm.lean.typing_names import Any, Self


@record
class Structure:
    """A structure of KVM's that one ioctl reads and one writes; ``size`` in bytes."""

    name: str
    size: int
    get: int
    set: int


class Descriptor:
    """Owns ``fd`` and closes it exactly once, at :meth:`close` or the end of ``with``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The open descriptor; ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """True once :meth:`close` has run."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor. Closing again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ioctl(self, name: str, request: int, argument: Any = 0) -> int:
        """Call ioctl with an integer or a cffi pointer; its result, or KvmError."""
        if isinstance(argument, int):
            argument = ffi.cast("void *", argument)
        result: int = libc.ioctl(self.fd, request, argument)
        if result < 0:
            raise KvmError(name, ffi.errno)
        return result

    def read(self, structure: Structure, given: bytes = b"") -> bytes:
        """The bytes of ``structure``, whose first bytes are ``given`` to KVM; KvmError."""
        data = ffi.new("uint64_t[]", (structure.size + 7) // 8)
        view = ffi.buffer(data, structure.size)
        view[: len(given)] = given
        self._ioctl(f"reading {structure.name}", structure.get, data)
        return bytes(view)

    def write(self, structure: Structure, data: bytes) -> None:
        """Have KVM take over ``data``, as :meth:`read` gave it; KvmError."""
        assert len(data) == structure.size
        words = ffi.new("uint64_t[]", (structure.size + 7) // 8)
        ffi.buffer(words, structure.size)[:] = data
        self._ioctl(f"writing {structure.name}", structure.set, words)
