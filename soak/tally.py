"""The expected counters of a disk, and the errors that it announced. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from pykvm.devices.virtio_blk.constants import (
    OPERATION_NAMES,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.hooks import IoError
from pykvm.devices.virtio_blk.modes import ErrorAction

NAMES: Final = {
    VIRTIO_BLK_T_IN: "rd",
    VIRTIO_BLK_T_OUT: "wr",
    VIRTIO_BLK_T_FLUSH: "flush",
    VIRTIO_BLK_T_DISCARD: "unmap",
    VIRTIO_BLK_T_WRITE_ZEROES: "zero",
}
COUNTED: Final = (
    *(f"{name}_operations" for name in NAMES.values()),
    *(f"{name}_bytes" for name in NAMES.values() if name != "flush"),
    *(f"failed_{name}_operations" for name in NAMES.values()),
    *(f"invalid_{name}_operations" for name in (*NAMES.values(), "other") if name != "flush"),
)

Key = tuple[str, int, int]
"""(kind of operation, sector, bytes) of a request, as in an announced error."""


class Tally:
    """``sure`` are counts that follow from answers; ``perhaps`` may be counted in addition."""

    def __init__(self) -> None:
        self.sure: Counter[str] = Counter()
        self.perhaps: Counter[str] = Counter()

    def done(self, kind: int, length: int) -> None:
        """Count a request that succeeded."""
        self._done(self.sure, kind, length)

    def failed(self, kind: int) -> None:
        """Count a request that the host could not carry out."""
        self.sure[f"failed_{NAMES[kind]}_operations"] += 1

    def invalid(self, kind: int) -> None:
        """Count an invalid request of the driver."""
        self.sure[_invalid(kind)] += 1

    def failed_or_invalid(self, kind: int) -> None:
        """Count a request beyond the end of a disk that was resized meanwhile."""
        self.perhaps[f"failed_{NAMES[kind]}_operations"] += 1
        self.perhaps[_invalid(kind)] += 1

    def lost(self, kind: int, length: int) -> None:
        """Count a request whose answer was lost in a reset."""
        self.perhaps[_invalid(kind)] += 1
        if kind in NAMES:
            self._done(self.perhaps, kind, length)
            self.perhaps[f"failed_{NAMES[kind]}_operations"] += 1

    def check(self, counted: dict[str, int]) -> None:
        """AssertionError if the disk ``counted`` differently."""
        for name in COUNTED:
            least = self.sure[name]
            most = least + self.perhaps[name]
            assert least <= counted[name] <= most, (
                f"{name} is {counted[name]}, but must be {least}"
                + (f" to {most}" if most > least else "")
            )

    def _done(self, counter: Counter[str], kind: int, length: int) -> None:
        if kind in NAMES:
            name = NAMES[kind]
            counter[f"{name}_operations"] += 1
            if kind != VIRTIO_BLK_T_FLUSH:
                counter[f"{name}_bytes"] += length


class Announced:
    """The errors that the disk announced. The disk's threads add to it; one thread reads it."""

    def __init__(self) -> None:
        self.stops = 0
        self._reported: Counter[Key] = Counter()
        self._ignored: Counter[Key] = Counter()
        self._ever_ignored: dict[Key, int] = {}

    def add(self, error: IoError, now: int) -> None:
        """``error`` was announced at time ``now``."""
        key = (error.operation, error.sector, error.length)
        if error.action is ErrorAction.STOP:
            self.stops += 1
        elif error.action is ErrorAction.REPORT:
            self._reported[key] += 1
        else:
            self._ever_ignored[key] = now
            self._ignored[key] += 1

    def reported(self, key: Key) -> bool:
        """True if the error that an answer reports was announced."""
        return _take(self._reported, key)

    def ignored(self, key: Key) -> bool:
        """True if an error of a request was announced, though its answer reports success."""
        return _take(self._ignored, key)

    def ignored_since(self, key: Key, then: int) -> bool:
        """True if an error with this key was ignored since ``then``."""
        return self._ever_ignored.get(key, -1) >= then

    @property
    def unanswered(self) -> int:
        """The number of errors whose requests were not answered."""
        return sum(self._reported.values()) + sum(self._ignored.values())


def key(kind: int, ranges: Sequence[tuple[int, int]]) -> Key:
    """The key under which errors of such a request are announced."""
    return OPERATION_NAMES[kind], ranges[0][0] if ranges else 0, 512 * sum(n for _, n in ranges)


def _take(counter: Counter[Key], key: Key) -> bool:
    if not counter[key]:
        return False
    counter[key] -= 1
    return True


def _invalid(kind: int) -> str:
    name = NAMES.get(kind, "other")
    return f"invalid_{'other' if name == 'flush' else name}_operations"
