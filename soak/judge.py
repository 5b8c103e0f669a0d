"""Checks that an answer is possible for its request. AssertionError if not."""

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
)
from pykvm.testing.ring_driver import Buffer
from soak.ask import Ask
from soak.memory import FILL, Slot
from soak.model import SECTOR, Access, Model, explains
from soak.syncs import Syncs
from soak.tally import Announced, Key, Tally, key


@dataclass(frozen=True, eq=False, slots=True)
class Sent:
    """A request in flight. ``lent``: the buffers that the device may write."""

    ask: Ask
    queue: int
    access: Access
    slot: Slot
    lent: Sequence[Buffer]

    @property
    def length(self) -> int:
        """The number of bytes of the disk that it covers."""
        return SECTOR * sum(count for _, count in self.ask.ranges)

    @property
    def end(self) -> int:
        """The first sector behind its ranges."""
        return max((sector + count for sector, count in self.ask.ranges), default=0)

    @property
    def key(self) -> Key:
        """The key of an error of this request, as the disk announces it."""
        return key(self.ask.kind, self.ask.ranges)

    def __str__(self) -> str:
        ranges = ", ".join(f"{first}+{count}" for first, count in self.ask.ranges)
        refused = "" if self.ask.refused is None else f" (refused: {self.ask.refused})"
        where = f"queue {self.queue}, batch {self.access.batch}, place {self.access.place}"
        return f"{where}: type {self.ask.kind} of {ranges or 'nothing'}{refused}"


class Judge:
    """Knows the possible contents of the disk, its counters, and the errors that it announced."""

    def __init__(
        self, model: Model, tally: Tally, announced: Announced, syncs: Syncs, serial: str
    ) -> None:
        self._model = model
        self._tally = tally
        self._announced = announced
        self._syncs = syncs
        self._id = serial.encode().ljust(VIRTIO_BLK_ID_BYTES, b"\0")

    def answer(self, sent: Sent, used: int) -> None:
        """Judge an answer: the device used the request's chain, with a length of ``used`` bytes."""
        ask = sent.ask
        stream = sent.slot.take_back(sent.lent)
        data, status = stream[:-1], stream[-1] if stream else -1
        if ask.refused is not None:
            assert status == ask.refused, f"it was answered with {status}"
            self._untouched(data)
            self._used(used, 1 if len(stream) == 1 else 0)
            self._tally.invalid(ask.kind)
            self._model.refuse(sent.access)
        elif ask.kind == VIRTIO_BLK_T_GET_ID:
            size = min(len(data), len(self._id))
            assert status == VIRTIO_BLK_S_OK, f"it was answered with {status}"
            assert data[:size] == self._id[:size], f"the serial is {data!r}"
            self._untouched(data[size:])
            self._used(used, size + 1 if size == len(data) else size)
            self._model.refuse(sent.access)
        elif status == VIRTIO_BLK_S_OK:
            assert sent.end <= sent.access.high, "a request behind the end of the disk succeeded"
            self._succeeded(sent, data, used)
        else:
            assert status == VIRTIO_BLK_S_IOERR, f"it was answered with {status}"
            self._failed(sent, data, used)

    def lost(self, sent: Sent) -> None:
        """Count the request as lost in a reset."""
        sent.slot.abandon()
        self._tally.lost(sent.ask.kind, sent.length)
        if sent.ask.refused is None:
            self._model.fail(sent.access)
        else:
            self._model.refuse(sent.access)

    def _succeeded(self, sent: Sent, data: bytes, used: int) -> None:
        read = sent.ask.kind == VIRTIO_BLK_T_IN
        ignored = self._announced.ignored_since(sent.key, sent.access.issued)
        if read:
            self._found(sent, data, ignored)
        else:
            self._untouched(data)
        whole = len(data) + 1 if read else 1
        if not (ignored and read and used == 0):
            self._used(used, whole)
        if self._announced.ignored(sent.key):
            self._tally.failed(sent.ask.kind)
            self._model.fail(sent.access)
            return
        self._tally.done(sent.ask.kind, sent.length)
        if ignored:  # one of several requests with this key failed, and it is unknown which
            self._model.fail(sent.access)
        else:
            self._syncs.check(sent.ask.kind, sent.access)
            self._model.succeed(sent.access)

    def _failed(self, sent: Sent, data: bytes, used: int) -> None:
        kind = sent.ask.kind
        read = kind == VIRTIO_BLK_T_IN
        fitted = sent.end <= sent.access.low
        if self._announced.reported(sent.key):
            self._tally.failed(kind)
            self._model.fail(sent.access)
            if read:
                self._found(sent, data, True)
        else:
            assert not fitted, "it failed, and no error was announced"
            if sent.end > sent.access.high:
                self._model.refuse(sent.access)
            else:
                self._model.fail(sent.access)
            self._tally.failed_or_invalid(kind)
        if not read:
            self._untouched(data)
        self._used(used, 0 if read else 1)

    def _found(self, sent: Sent, data: bytes, in_part: bool) -> None:
        """Check the ``data`` of a read. ``in_part``: some of it may not have been read."""
        at = 0
        for first, count in sent.ask.ranges:
            for sector in range(first, first + count):
                found = data[at : at + SECTOR]
                contents = self._model.possible(sent.access, sector)
                if in_part:
                    contents.append(bytes([FILL]) * SECTOR)
                assert explains(contents, found), (
                    f"sector {sector} cannot contain {_short(found)}, which was read, "
                    f"but {' or '.join(map(_short, contents))}"
                )
                at += SECTOR

    def _untouched(self, data: bytes) -> None:
        assert data.count(FILL) == len(data), "the device wrote to a buffer without need"

    def _used(self, used: int, written: int) -> None:
        """Check the used length. ``written``: the device-writable bytes before the first gap."""
        assert used == written, f"the device says that it wrote {used} bytes, not {written}"


def is_flush(sent: Sent) -> bool:
    """True if the request has to wait for earlier writes in its queue."""
    return sent.ask.kind == VIRTIO_BLK_T_FLUSH


def _short(content: bytes) -> str:
    return f"{content[:4].hex()}…{content[-4:].hex()}"
