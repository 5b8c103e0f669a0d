"""Files to a guest and from it, and the messages of its kernel."""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pykvm.errors import UsageError, reason_of
from pykvm.forms import file_name, refused, whole
from pykvm.guest.errors import GuestDied, GuestError
from pykvm.guest.session import Session
from pykvm.guest.waiting import Deadline
from pykvm.machine.run_state import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.agent.client import AgentClient

MOST_PULLED = 256 << 20
"""The most bytes of a file that a pull keeps in memory."""
SETTLE_SECONDS = 2.0
"""The most seconds that a snapshot waits for the agent's shells."""
_PIECE = 1 << 16
_LEVEL = re.compile("^<[0-9]+>", re.MULTILINE)
"""The level of a message in the kernel's log."""
_MODE = 0o644
_MOST_MODE = 0o7777


class Handle(Protocol):
    """A transfer, as the agent's client has it."""

    def cancel(self) -> None: ...


class Transfer:
    """A transfer: the agent's client calls ``data``, ``done``, ``failed`` and ``room``.

    ``mode`` is the file's permissions, once the transfer is over.
    """

    def __init__(
        self, session: Session, during: str, take: Callable[[bytes], object] = len
    ) -> None:
        """``during`` names the transfer. ``take`` gets the data, in a vCPU's thread."""
        self.mode = 0
        self._session = session
        self._during = during
        self._take = take
        self._changed = threading.Condition()
        self._over = False
        self._reason: str | None = None
        self._error: Exception | None = None
        self._has_room = True

    def finish(self, handle: Handle, deadline: Deadline) -> None:
        """:meth:`wait`; a transfer that is given up is cancelled."""
        try:
            self.wait(deadline)
        except BaseException:
            if not self._over:
                handle.cancel()
            raise

    def wait(self, deadline: Deadline) -> None:
        """Wait for the end. GuestError, GuestDied, GuestTimeout; what ``take`` raised, at once."""
        self._wait(lambda: self._over or self._error is not None, deadline)
        if self._error is not None:
            raise self._error
        if self._reason is not None:
            raise self._session.lost(self._reason, self._during)

    def send(
        self, pieces: Iterable[bytes], send: Callable[[bytes], bool], deadline: Deadline
    ) -> None:
        """``send`` the pieces while there is room, until the transfer is over."""
        for piece in pieces:
            self._wait(lambda: self._has_room or self._over, deadline)
            if self._over:
                return
            self._has_room = False
            if send(piece):
                self.room()

    def _wait(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        with self._changed:
            while not condition():
                if not self._changed.wait(deadline.left):
                    raise self._session.late(f"{self._during} has not ended {deadline.text}")

    # -- events ------------------------------------------------------------------

    def data(self, data: bytes) -> None:
        """See PullEvents."""
        if self._error is None:
            try:
                self._take(data)
            except (OSError, GuestError) as error:  # such as a full disk of the host
                with self._changed:
                    self._error = error
                    self._changed.notify_all()

    def done(self, mode: int) -> None:
        """See DoneEvents."""
        self.mode = mode
        self._end()

    def failed(self, reason: str) -> None:
        """See DoneEvents."""
        self._reason = reason
        self._end()

    def room(self) -> None:
        """See PushEvents."""
        with self._changed:
            self._has_room = True
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()


def push(
    session: Session,
    client: "AgentClient",
    source: "Path | str | bytes",
    path: str,
    mode: int | None,
    deadline: Deadline,
) -> None:
    """See :meth:`Guest.push`."""
    target = _guest_path(path)
    if mode is not None and not 0 <= whole("mode", mode) <= _MOST_MODE:
        raise refused("mode", mode, "give permissions, such as 0o755")
    if isinstance(source, bytes):
        _push(session, client, [source], target, _MODE if mode is None else mode, deadline)
        return
    name = file_name("source", source)
    try:
        with open(name, "rb") as file:
            own = os.fstat(file.fileno()).st_mode & _MOST_MODE
            pieces = iter(lambda: file.read(_PIECE), b"")
            _push(session, client, pieces, target, own if mode is None else mode, deadline)
    except OSError as error:
        raise UsageError(f"the file {name} cannot be read: {reason_of(error)}") from None


def _push(
    session: Session,
    client: "AgentClient",
    pieces: Iterable[bytes],
    path: bytes,
    mode: int,
    deadline: Deadline,
) -> None:
    transfer = Transfer(session, f"the push to {os.fsdecode(path)}")
    handle = client.push(path, mode, transfer)
    try:
        transfer.send(_cut(pieces), handle.data, deadline)
    except BaseException:
        handle.cancel()
        raise
    handle.end()
    transfer.finish(handle, deadline)


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), _PIECE):
            yield piece[start : start + _PIECE]


def pull(session: Session, client: "AgentClient", path: str, deadline: Deadline) -> bytes:
    """See :meth:`Guest.pull`."""
    data = bytearray()
    _pull(session, client, path, _limited(data, f"the file {path}"), deadline)
    return bytes(data)


def _limited(data: bytearray, name: str) -> Callable[[bytes], object]:
    """Adds to ``data``, so that no guest fills the host's memory."""

    def take(piece: bytes) -> None:
        if len(data) + len(piece) > MOST_PULLED:
            raise GuestError(
                f"{name} is longer than {MOST_PULLED >> 20} MiB", "pull it to a file of the host"
            )
        data.extend(piece)

    return take


def pull_file(
    session: Session, client: "AgentClient", path: str, to: "Path | str", deadline: Deadline
) -> None:
    """See :meth:`Guest.pull`."""
    name = os.fsdecode(file_name("to", to))
    part = f"{name}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(part, "xb") as file:
            transfer = _pull(session, client, path, file.write, deadline)
            os.fchmod(file.fileno(), transfer.mode & 0o777)
        os.replace(part, name)
    except OSError as error:
        raise UsageError(f"the file {name} cannot be written: {reason_of(error)}") from None
    finally:
        with suppress(OSError):
            os.unlink(part)


def _pull(
    session: Session,
    client: "AgentClient",
    path: str,
    take: Callable[[bytes], object],
    deadline: Deadline,
) -> Transfer:
    source = _guest_path(path)
    transfer = Transfer(session, f"the pull of {path}", take)
    transfer.finish(client.pull(source, transfer), deadline)
    return transfer


def dmesg(session: Session, client: "AgentClient", deadline: Deadline) -> str:
    """See :meth:`Guest.dmesg`."""
    data = bytearray()
    transfer = Transfer(session, "dmesg", _limited(data, "the kernel's log"))
    transfer.finish(client.dmesg(transfer), deadline)
    return _LEVEL.sub("", data.decode("utf-8", "replace"))


def rescan(session: Session, client: "AgentClient", deadline: Deadline) -> None:
    """See :meth:`Guest.add_disk`."""
    scan = Transfer(session, "the scan for the disk")
    client.rescan(scan)
    scan.wait(deadline)
    session.machine.unseen_disks = False


def settle(session: Session, client: "AgentClient") -> None:
    """Have the agent start the shells that commands need, so that a snapshot holds them.

    A guest that does not do so soon, such as one that is paused, is left as it is. GuestDied.
    """
    if session.machine.status is not RunState.RUNNING or not session.answered:
        return
    settling = Transfer(session, "the preparation of a snapshot")
    client.settle(settling)
    try:
        settling.wait(Deadline(SETTLE_SECONDS))
    except GuestDied:
        raise
    except GuestError:
        pass  # commands that begin from the snapshot are slower, and that is all


def _guest_path(path: object) -> bytes:
    name = os.fsencode(path) if isinstance(path, str | os.PathLike) else b""
    if name.startswith(b"/") and b"\0" not in name:
        return name
    raise refused("path", path, "give an absolute path in the guest")
