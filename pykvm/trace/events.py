"""The events of a trace: their names, and the interface of their receiver. Pure.

docs/reference/trace.md has the fields of each.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Protocol

from pykvm.errors import UsageError
from pykvm.suggest import did_you_mean

BEGIN: Final = "trace.begin"
DISK: Final = "trace.disk"
END: Final = "trace.end"

NEGOTIATE: Final = "virtio_blk.negotiate"
ACTIVATE: Final = "virtio_blk.activate"
RESET: Final = "virtio_blk.reset"
CACHE: Final = "virtio_blk.cache"
RESIZE: Final = "virtio_blk.resize"
BROKEN: Final = "virtio_blk.broken"
REQUEST: Final = "virtio_blk.request"
ANSWER: Final = "virtio_blk.answer"
REFUSE: Final = "virtio_blk.refuse"
MERGE: Final = "virtio_blk.merge"
SUBMIT: Final = "virtio_blk.submit"
COMPLETE: Final = "virtio_blk.complete"
RETRY: Final = "virtio_blk.retry"
ERROR: Final = "virtio_blk.error"
DONE: Final = "virtio_blk.done"
STOP: Final = "virtio_blk.stop"
RESUME: Final = "virtio_blk.resume"

FRAME: Final = (BEGIN, DISK, END)
"""The events of every trace, whatever the user selects."""
EVENTS: Final = MappingProxyType(
    {
        NEGOTIATE: "the driver accepted features",
        ACTIVATE: "the driver is ready: the device serves its queues from now on",
        RESET: "the driver reset the device, or the run is over",
        CACHE: "the driver switched the write cache on or off",
        RESIZE: "the size of the disk changed",
        BROKEN: "a ring is unusable, or the host cannot serve the disk: DEVICE_NEEDS_RESET",
        REQUEST: "the device took a request from the ring, to execute it",
        ANSWER: "the device answered a request that needs no operation, such as GET_ID",
        REFUSE: "the device answered an invalid request with an error",
        MERGE: "several requests became one operation",
        SUBMIT: "an operation went to the engine",
        COMPLETE: "an operation completed or failed",
        RETRY: "an operation that failed or came back short is tried again",
        ERROR: "the host could not carry out a request, and the disk's policy decided",
        DONE: "the device answered a request after executing it",
        STOP: "the queue starts no more operations: the guest or an error stopped it",
        RESUME: "the queue continues",
    }
)
"""The events that a user can select, with their meanings."""

DEVICE: Final = -1
"""The ``queue`` of an event that belongs to no queue."""

Fields = Mapping[str, Any]
"""The further fields of an event, by name: values that JSON has."""


class Sink(Protocol):
    """Takes events. Any thread may call it."""

    def wants(self, event: str) -> bool:
        """True if the sink records ``event``. The answer never changes."""
        ...

    def record(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> None:
        """Record ``event`` of ``queue`` of ``disk``, at time ``ns`` (time.monotonic_ns)."""
        ...


def matching(patterns: str) -> frozenset[str]:
    """The names of :data:`EVENTS` that match one of ``patterns``, which are joined by ``:``.

    UsageError for a pattern that matches no name.
    """
    found: set[str] = set()
    for pattern in patterns.split(":"):
        names = {name for name in EVENTS if fnmatchcase(name, pattern)}
        if not names:
            hint = did_you_mean(pattern, EVENTS, "--trace help lists them all")
            raise UsageError(f"there is no trace event '{pattern}'", hint)
        found |= names
    return frozenset(found)
