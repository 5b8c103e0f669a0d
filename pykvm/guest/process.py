"""A command that runs in a guest, and its streams."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Self

from pykvm.errors import UsageError
from pykvm.forms import refused, whole
from pykvm.guest.errors import CommandFailed, GuestError, GuestTimeout, tail
from pykvm.guest.result import Command, Result, command_text
from pykvm.guest.running import MOST_KEPT, STREAMS, Running
from pykvm.guest.session import Session
from pykvm.guest.waiting import Deadline

_PIECE = 1 << 16
_MAX_SIGNAL = 64


class Process:
    """A command that runs in a guest: see :meth:`Guest.popen`. A context manager.

    ``command`` is the command as it was given. ``stdin`` is its standard input, and ``stdout``
    and ``stderr`` are its outputs. The guest holds the command up while it has written more than
    256 KiB that nobody has read. Any thread may call any method; each stream has one reader at a
    time. At the end of the ``with`` block a command that still runs is killed.
    """

    def __init__(self, session: Session, command: Command, running: Running, guest: object) -> None:
        """``guest`` is what must live while the command is used."""
        self.command = command
        self.stdin = InputStream(self)
        self.stdout = OutputStream(self, 0)
        self.stderr = OutputStream(self, 1)
        self._session = session
        self._running = running
        self._guest = guest

    def __repr__(self) -> str:
        state = "runs" if self.status is None else f"status {self.status}"
        return f"<Process {command_text(self.command)}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._running.over:
            self.kill()
            self._running.discard()

    @property
    def status(self) -> int | None:
        """The exit status, or 128 + N if signal N ended the command; None while it runs."""
        ended = self._running.exit
        return None if ended is None else _status(ended.status, ended.signal)

    @property
    def seconds(self) -> float:
        """The time from its start to its end, or until now; by the host's clock."""
        running = self._running
        return (running.ended if running.over else time.monotonic()) - running.began

    def wait(self, timeout: float | None = None, *, check: bool = True) -> Result:
        """Wait for the command's end; return its status and the output that nobody has read.

        CommandFailed if ``check`` and its status is not 0. GuestTimeout after ``timeout``
        seconds; None is the guest's own limit. The command then runs on. GuestDied if the guest
        ends. GuestError if it writes more than 64 MiB meanwhile; then it is killed.
        """
        return self._finish(self._session.deadline(timeout), check)

    def _finish(self, deadline: Deadline, check: bool) -> Result:
        """:meth:`wait`, until ``deadline``."""
        running = self._running
        with running.changed:
            running.drain(True)
            try:
                while not running.over and not running.overflow:
                    if not running.changed.wait(deadline.left):
                        raise self._timeout(f"has not ended {deadline.text}")
            finally:
                running.drain(False)
        if running.overflow:
            self.kill()
            running.discard()
            raise self._too_much(running.overflow)
        result = self._result()
        if check and result.status:
            raise CommandFailed(result)
        return result

    def send_signal(self, number: int) -> None:
        """Send signal ``number`` to the command's process group, if the command runs."""
        if not 1 <= whole("number", number) <= _MAX_SIGNAL:
            raise refused("number", number, f"give a signal, 1 to {_MAX_SIGNAL}")
        if not self._running.over:
            self._running.handle.signal(number)

    def kill(self) -> None:
        """Send SIGKILL to the command's process group, if the command runs. It does not wait."""
        self.send_signal(signal.SIGKILL)

    def _result(self) -> Result:
        running = self._running
        with running.changed:
            ended = running.exit
            if ended is None:
                raise self._lost()
            stdout, stderr = map(bytes, running.kept)
            for kept in running.kept:
                kept.clear()
        status = _status(ended.status, ended.signal)
        return Result(status, ended.signal, stdout, stderr, self.seconds, self.command)

    def _too_much(self, stream: str) -> GuestError:
        return GuestError(
            f"{command_text(self.command)} wrote more than {MOST_KEPT >> 20} MiB to {stream}, "
            "the most that is kept",
            "write it to a file in the guest, or read it from popen(…) in pieces",
        )

    def _lost(self) -> GuestError:
        return self._session.lost(self._running.reason or "", command_text(self.command))

    def _timeout(self, state: str) -> GuestTimeout:
        outputs = zip(STREAMS, self._running.kept, strict=True)
        details = ((f"{name}, the end", tail(kept)) for name, kept in outputs)
        return self._session.late(f"{command_text(self.command)} {state}", *details)


class OutputStream:
    """An output stream of a command. Iterating over it gives its lines, until it ends.

    Every wait ends with GuestTimeout after ``timeout`` seconds (None: the guest's own limit), and
    then loses no byte; and with GuestDied if the guest ends before the command.
    """

    def __init__(self, process: Process, stream: int) -> None:
        self._process = process
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def read(self, size: int = -1, timeout: float | None = None) -> bytes:
        """The next ``size`` bytes, fewer only at the end of the stream; -1: all to the end."""
        whole("size", size)
        return self._take(timeout, lambda kept: size if 0 <= size <= len(kept) else -1)

    def read1(self, timeout: float | None = None) -> bytes:
        """The bytes that are there, at least one; none at the end of the stream."""
        return self._take(timeout, lambda kept: len(kept) or -1)

    def readline(self, timeout: float | None = None) -> bytes:
        """The next line with its newline; the last line may lack it; none at the end."""
        seen = 0

        def end_of_line(kept: bytearray) -> int:
            nonlocal seen
            found = kept.find(b"\n", seen)
            seen = len(kept)
            return found + 1 if found >= 0 else -1

        return self._take(timeout, end_of_line)

    def _take(self, timeout: float | None, enough: Callable[[bytearray], int]) -> bytes:
        """Take the number of bytes that ``enough`` tells of those that are there; -1: wait."""
        process, stream = self._process, self._stream
        running = process._running
        deadline = process._session.deadline(timeout)
        with running.changed:
            kept = running.kept[stream]
            while (count := enough(kept)) < 0:
                if running.reason is not None:
                    raise process._lost()
                if running.exit is not None:
                    count = len(kept)
                    break
                if len(kept) >= MOST_KEPT:
                    raise process._too_much(STREAMS[stream])
                running.pay(stream, 0)
                if not running.changed.wait(deadline.left):
                    raise process._timeout(f"has not written enough {deadline.text}")
            taken = bytes(kept[:count])
            del kept[:count]
            running.pay(stream, len(kept))
            return taken


class InputStream:
    """The standard input of a command."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._closed = False

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send ``data``; wait while the command has not read enough of what it got before.

        GuestError if the command ends before, GuestDied if the guest does, and GuestTimeout after
        ``timeout`` seconds (None: the guest's own limit); a part of ``data`` may have been sent.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise refused("data", data, "give bytes")
        process = self._process
        if self._closed:
            raise UsageError(
                f"the input of {command_text(process.command)} is closed", "write before close()"
            )
        if not self._send(data, process._session.deadline(timeout)):
            raise GuestError(f"{command_text(process.command)} ended before it had read its input")

    def close(self) -> None:
        """End the input: the command reads the end of the file. May be repeated."""
        self._closed = True
        self._process._running.handle.stdin_eof()

    def _feed(self, data: bytes, deadline: Deadline) -> None:
        """Send ``data`` and its end. A command that ends before it has read all is no error."""
        if self._send(data, deadline):
            self.close()

    def _send(self, data: bytes | bytearray | memoryview, deadline: Deadline) -> bool:
        process = self._process
        running = process._running
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            with running.changed:
                while not running.has_room and not running.over:
                    if not running.changed.wait(deadline.left):
                        raise process._timeout(f"has not read its input {deadline.text}")
                if running.reason is not None:
                    raise process._lost()
                if running.exit is not None:
                    return False
                running.has_room = False
            if running.handle.stdin(bytes(view[start : start + _PIECE])):
                running.room()
        return True


def _status(status: int, number: int) -> int:
    return 128 + number if number else status
