"""The file of a trace, and the thread that writes it.

Events become text where they happen, in a thread that is awake for them
anyway: a second one that encodes would fight it for the GIL, and the times in
the trace would be those of the fight. Only the writing, during which Python
lets others run, is another thread's.
"""

import os
import stat
import threading
import time
from pathlib import Path
from typing import Self

from pykvm import __version__
from pykvm.errors import UsageError, reason_of
from pykvm.threads import show_thread_name
from pykvm.trace.events import BEGIN, DEVICE, END, FRAME, Fields, matching
from pykvm.trace.formats import Chrome, Format, JsonLines
from pykvm.trace.options import TraceFormat, TraceOptions
from pykvm.trace.reader import VERSION

BACKLOG = 1 << 14
"""Events that wait to be written; who has one more waits too. Some MiB at most."""
PERIOD_SECONDS = 0.1
"""How long events gather before they are written: what a killed pykvm loses."""


class TraceFile:
    """A Sink that writes a file. A context manager, whose end completes it.

    Nothing is lost between the first event and :meth:`close`, unless the file
    cannot be written: the trace ends there, and ``problem`` says so.
    """

    def __init__(self, options: TraceOptions) -> None:
        """Create the file, or empty it; UsageError if it cannot be, or is not a regular one."""
        self.problem = ""
        self._path = options.path
        self._wanted = matching(options.events) | frozenset(FRAME)
        chrome = options.format is TraceFormat.CHROME
        self._format: Format = Chrome() if chrome else JsonLines()
        self._fd = _open(options.path)
        # Guards what follows, and tells that it has changed.
        self._state = threading.Condition()
        self._texts = [self._format.head]
        self._closing = False
        self._writer: threading.Thread | None = None
        begin = {"version": VERSION, "pykvm": __version__, "time_ns": time.time_ns()}
        self.record(BEGIN, time.monotonic_ns(), "", DEVICE, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def wants(self, event: str) -> bool:
        """See Sink."""
        return event in self._wanted

    def record(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> None:
        """See Sink. Waits while the file's disk is too slow for what happens."""
        if event not in self._wanted:
            return
        with self._state:
            if self._closing or self.problem:
                return
            self._texts.append(self._format.encode(event, ns, disk, queue, fields))
            if len(self._texts) in (1, BACKLOG):
                self._state.notify_all()
            if self._writer is None and event not in FRAME:  # the guest runs
                self._writer = threading.Thread(target=self._run, name="trace", daemon=True)
                self._writer.start()
            while len(self._texts) >= BACKLOG:
                self._state.wait()
        if self._writer is None:  # the machine is being built
            self._write_gathered()

    def close(self) -> None:
        """Write all that was recorded, and the end. May be repeated."""
        self.record(END, time.monotonic_ns(), "", DEVICE, {})
        with self._state:
            if self._closing:
                return
            self._closing = True
            self._state.notify_all()
        if self._writer is not None:
            self._writer.join()
        self._texts.append(self._format.tail)
        self._write_gathered()
        os.close(self._fd)

    def _run(self) -> None:
        show_thread_name("trace")
        while True:
            with self._state:
                self._state.wait_for(lambda: self._texts or self._closing)
                self._state.wait_for(
                    lambda: self._closing or len(self._texts) >= BACKLOG, PERIOD_SECONDS
                )
                if self._closing:
                    return
            self._write_gathered()

    def _write_gathered(self) -> None:
        with self._state:
            texts, self._texts = self._texts, []
            self._state.notify_all()
        if self.problem:
            return
        data = memoryview("".join(texts).encode())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            reason = reason_of(error)
            self.problem = f"the trace {self._path} is not complete: {reason}"


def _open(path: Path) -> int:
    hint = "give --trace a file that can be written"
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        reason = reason_of(error)
        raise UsageError(f"the trace {path} cannot be written: {reason}", hint) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"the trace {path} would not be a regular file", hint)
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
