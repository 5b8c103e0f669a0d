"""The events of a trace: their names, and who takes them. Pure.

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
"""What every trace has, whatever was asked for."""
EVENTS: Final = MappingProxyType(
    {
        NEGOTIATE: "the driver accepted features",
        ACTIVATE: "the driver is ready: the device serves its queues from now on",
        RESET: "the driver reset the device, or the run is over",
        CACHE: "the driver switched the write cache on or off",
        RESIZE: "the disk has another size from now on",
        BROKEN: "a ring is beyond use, or the host cannot serve the disk: DEVICE_NEEDS_RESET",
        REQUEST: "a request was taken off the ring and is to be executed",
        ANSWER: "a request was answered without executing anything, as GET_ID is",
        REFUSE: "a request was answered with an error, because the guest got it wrong",
        MERGE: "several requests became one operation",
        SUBMIT: "the engine was given an operation",
        COMPLETE: "the engine has carried out an operation, or failed to",
        RETRY: "an operation failed or came back short and is tried again",
        ERROR: "the host could not carry out a request, and its policy was asked",
        DONE: "a request that was executed is answered",
        STOP: "nothing starts any more: the guest was stopped, or an error stops it",
        RESUME: "the queue goes on",
    }
)
"""What a user can ask for, and what each event tells."""

DEVICE: Final = -1
"""The ``queue`` of an event that has none."""

Fields = Mapping[str, Any]
"""The rest of an event, by name: what JSON can hold."""


class Sink(Protocol):
    """Takes events. Any thread may call it."""

    def wants(self, event: str) -> bool:
        """Is ``event`` of interest? The answer never changes."""
        ...

    def record(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> None:
        """``event`` happened to ``queue`` of ``disk`` at ``ns`` (time.monotonic_ns)."""
        ...


def matching(patterns: str) -> frozenset[str]:
    """The names of :data:`EVENTS` that one of ``patterns`` matches; they are joined by ``:``.

    UsageError for a pattern that matches none.
    """
    found: set[str] = set()
    for pattern in patterns.split(":"):
        names = {name for name in EVENTS if fnmatchcase(name, pattern)}
        if not names:
            hint = did_you_mean(pattern, EVENTS, "--trace help lists them all")
            raise UsageError(f"no event of a trace is called '{pattern}'", hint)
        found |= names
    return frozenset(found)
