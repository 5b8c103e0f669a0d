"""Standard input to the guest, and the guest's output to standard output."""

import errno
import os
import select
import signal
import threading
from collections.abc import Callable

from pykvm.errors import reason_of
from pykvm.host.threads import start
from pykvm.lean.typing_names import TYPE_CHECKING, Self
from pykvm.machine.outcome import Outcome

if TYPE_CHECKING:
    from pykvm.cli.boot.escape_keys import Key
    from pykvm.cli.boot.terminal import RawTerminal

_CHUNK = 4096
"""Bytes moved at a time; a pipe that poll() calls writable takes PIPE_BUF = 4096 at once."""
_TYPED_AHEAD = 1 << 20
_LOOK_AGAIN_MS = 500
_JOIN_SECONDS = 2.0


class ScriptInput:
    """Passes input that is not from a terminal to the guest's console, and ends it with Ctrl-D.

    ``exact``: the guest reads a script as the bundled guest does, and Ctrl-V makes the next byte
    an ordinary one. So every byte arrives. Any other guest gets the bytes as if they were typed.
    On its terminal Ctrl-D ends the input only at the start of a line, so a missing newline is
    added before it.
    """

    def __init__(self, feed: Callable[[bytes], bool], *, exact: bool) -> None:
        self._feed = feed
        self._exact = exact
        self._at_line_start = True

    def feed(self, data: bytes) -> bool:
        """Pass ``data`` on; see ``feed`` of the UART."""
        if self._exact:
            return self._feed(data.replace(b"\x16", b"\x16\x16").replace(b"\x04", b"\x16\x04"))
        self._at_line_start = data.endswith((b"\n", b"\r"))
        return self._feed(data)

    def end(self) -> None:
        """The input is over."""
        self._feed(b"\x04" if self._at_line_start else b"\n\x04")


class InputPump:
    """A context whose thread reads ``fd``. It owns the thread but not ``fd``.

    ``feed(data)`` takes the read bytes. If it returns False, the pump reads nothing more until
    :meth:`wake`, which is the callback for ``on_room``. ``ended()`` is called once at the end of
    the input: at the end of file, if ``fd`` cannot be read (closed, a directory), or if the
    thread fails by a bug.

    With ``on_key``, the input is a terminal's. The pump takes the escape keys out of it and passes
    them to ``on_key``. It reads even after ``feed`` has returned False, so that Ctrl-a x works
    while the guest takes no input. Beyond 1 MiB of such input it drops typed bytes. ``ended()``
    then means that the terminal is gone. The pump makes ``terminal`` raw again when this process
    returns to the terminal's foreground. ``woken()`` is called in the pump's thread after each
    :meth:`wake`.
    """

    def __init__(
        self,
        fd: int,
        feed: Callable[[bytes], bool],
        ended: Callable[[], None],
        *,
        on_key: "Callable[[Key], None] | None" = None,
        terminal: "RawTerminal | None" = None,
        woken: Callable[[], None] = lambda: None,
    ) -> None:
        self._fd = fd
        self._feed = feed
        self._ended = ended
        self._on_key = on_key
        self._terminal = terminal
        self._woken = woken
        if on_key:
            # Imported only for terminals, because start-up time counts.
            from pykvm.cli.boot.escape_keys import EscapeParser

            self._parser = EscapeParser()
        self._lock = threading.Lock()
        self._eventfd = -1
        self._stopped = False
        self._blocked = False
        self._ahead = 0
        self._thread = threading.Thread(target=self._run, name="input", daemon=True)

    def __enter__(self) -> Self:
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        start(self._thread, "standard input")
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop reading. The callbacks must not call this."""
        self._stopped = True
        self.wake()
        # If a second reader of the same terminal takes the input first, our read may block.
        self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive():
            with self._lock:
                os.close(self._eventfd)
                self._eventfd = -1

    def wake(self) -> None:
        """There is room for input again. Any thread may call this at any time."""
        with self._lock:
            if self._eventfd >= 0:
                os.eventfd_write(self._eventfd, 1)

    def _run(self) -> None:
        try:
            self._pump()
        except BaseException:
            # Without this, a bug would leave the guest without input and the user without keys.
            self._ended()
            raise

    def _pump(self) -> None:
        while True:
            readable = self._wait()
            if self._stopped:
                return
            if readable and not self._read():
                self._ended()
                return

    def _wait(self) -> bool:
        """Sleep until there is something to do. True if ``fd`` can be read."""
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        if not self._blocked:
            poll.register(self._fd, select.POLLIN)
        lost = self._terminal is not None and self._terminal.is_terminal and not self._terminal.raw
        ready = dict(poll.poll(_LOOK_AGAIN_MS if lost else None))
        if lost and self._terminal is not None:
            self._terminal.resume()
        if ready.pop(self._eventfd, 0):
            os.eventfd_read(self._eventfd)
            self._blocked = False
            self._ahead = 0
            self._woken()
        return bool(ready)

    def _read(self) -> bool:
        """Read once and pass the bytes on. False at the end of the input."""
        try:
            data = os.read(self._fd, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            return error.errno == errno.EIO and self._in_background()
        if not data:
            return False
        if self._on_key is None:
            self._blocked = not self._feed(data)
        else:
            self._type(data, self._on_key)
        return True

    def _in_background(self) -> bool:
        """True if reading failed only because this process is in the background; waits a little."""
        terminal = self._terminal
        if terminal is None or not terminal.is_terminal or terminal.in_foreground():
            return False
        select.select([self._eventfd], [], [], _LOOK_AGAIN_MS / 1000)
        return True

    def _type(self, data: bytes, on_key: "Callable[[Key], None]") -> None:
        for item in self._parser.feed(data):
            if not isinstance(item, bytes):
                on_key(item)
            elif self._ahead < _TYPED_AHEAD:
                self._ahead = 0 if self._feed(item) else self._ahead + len(item)


class OutputWriter:
    """Writes to ``fd``, which it does not own. Any thread may write, and calls do not mix.

    A reader that does not read makes :meth:`write`, and so the guest, wait until :meth:`release`.
    After an error all output is dropped, and ``failed`` gets the first error (see
    :func:`output_failure`).
    """

    def __init__(self, fd: int, failed: Callable[[OSError], None]) -> None:
        self._fd = fd
        self._failed = failed
        self._lock = threading.Lock()
        self._broken = False
        self._released = False
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._poll.register(self._eventfd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
        with self._lock:
            self._broken = True
            os.close(self._eventfd)
            self._eventfd = -1

    def write(self, data: bytes) -> None:
        """Write all of ``data``, in order."""
        with self._lock:
            error = self._write(memoryview(data))
        if error is not None:
            self._failed(error)

    def release(self) -> None:
        """The run is over: drop output that would wait, also in calls that already wait.

        May be called more than once.
        """
        if not self._released:
            self._released = True
            os.eventfd_write(self._eventfd, 1)

    def _write(self, data: memoryview) -> OSError | None:
        while data and not self._broken:
            ready = dict(self._poll.poll(0 if self._released else None))
            if self._fd not in ready:
                if self._released:
                    return None
                continue
            try:
                data = data[os.write(self._fd, data[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._broken = True
                return error
        return None


def output_failure(error: OSError) -> Outcome:
    """The outcome of a run whose output cannot be written.

    A reader that went away (EPIPE) ends the run as SIGPIPE would, without a message. A terminal
    that went away (EIO) ends it as SIGHUP would.
    """
    if error.errno == errno.EPIPE:
        return Outcome.signalled(signal.SIGPIPE)
    if error.errno == errno.EIO:
        return Outcome.signalled(signal.SIGHUP)
    return Outcome.error(f"the guest's output cannot be written: {reason_of(error)}")
