"""The file of a trace, and the thread that writes it.

The thread in which an event occurs turns it into text. If a second thread did
that, the two would compete for the GIL, which would distort the times in the
trace. The second thread only writes the text, and writing releases the GIL.
"""

import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pykvm import __version__
from pykvm.errors import reason_of
from pykvm.host.threads import show_thread_name
from pykvm.host.write import write_all
from pykvm.outputs import Outputs
from pykvm.trace.events import BEGIN, DEVICE, END, FRAME, Fields, matching
from pykvm.trace.formats import Chrome, Format, JsonLines
from pykvm.trace.options import TraceFormat, TraceOptions
from pykvm.trace.reader import VERSION

BACKLOG = 1 << 14
"""The most events that wait to be written, a few MiB. With more, the recording thread waits."""
PERIOD_SECONDS = 0.1
"""The time for which events are collected before a write; a killed pykvm loses these events."""


class TraceFile:
    """A Sink that writes a file. A context manager, whose end completes the file.

    :meth:`begin` empties the file, and :meth:`close` completes it. No event is
    lost between, unless a write fails: then the trace ends there, and
    ``problem`` has a sentence about it.
    """

    def __init__(self, options: TraceOptions, inputs: Iterable[Path] = ()) -> None:
        """Open or create the file. UsageError if that fails, or the file is not a regular one.

        The file must be none of ``inputs``.
        """
        self.problem = ""
        self._path = options.path
        self._wanted = matching(options.events) | frozenset(FRAME)
        chrome = options.format is TraceFormat.CHROME
        self._format: Format = Chrome() if chrome else JsonLines()
        self._owned = ExitStack()
        outputs = self._owned.enter_context(Outputs(inputs))
        self._output = outputs.open(options.path, "the trace", alone=True)
        self._begun = False
        # Guards the attributes below, and announces their changes.
        self._state = threading.Condition()
        self._texts = [self._format.head]
        self._closing = False
        self._writer: threading.Thread | None = None
        begin = {"version": VERSION, "pykvm": __version__, "time_ns": time.time_ns()}
        self.record(BEGIN, time.monotonic_ns(), "", DEVICE, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None and not self._begun:
            self._owned.close()
        else:
            self.close()

    def begin(self) -> None:
        """Empty the file, and write all earlier and later events to it. May be repeated."""
        if self._begun:
            return
        self._begun = True
        try:
            self._output.begin()
        except OSError as error:
            self._give_up(reason_of(error))
        self._write_gathered()

    def wants(self, event: str) -> bool:
        """See Sink."""
        return event in self._wanted

    def record(self, event: str, ns: int, disk: str, queue: int, fields: Fields) -> None:
        """See Sink. Waits while the file's disk is slower than the events."""
        if event not in self._wanted:
            return
        with self._state:
            if self._closing or self.problem:
                return
            self._texts.append(self._format.encode(event, ns, disk, queue, fields))
            if len(self._texts) in (1, BACKLOG):
                self._state.notify_all()
            if self._writer is None and event not in FRAME:  # the guest runs
                self._start_writer()
            while len(self._texts) >= BACKLOG and not self.problem:
                self._state.wait()

    def close(self) -> None:
        """Write all recorded events, and the end of the trace. May be repeated."""
        self.begin()
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
        self._owned.close()

    def _start_writer(self) -> None:
        writer = threading.Thread(target=self._run, name="trace", daemon=True)
        try:
            writer.start()
        except RuntimeError:
            self._give_up("the host has no thread to write it")
        else:
            self._writer = writer

    def _run(self) -> None:
        try:
            show_thread_name("trace")
            self.begin()
            while self._gather():
                self._write_gathered()
        except BaseException as bug:
            # Recording threads must not wait for this thread, which ends here.
            self._give_up(repr(bug))

    def _gather(self) -> bool:
        """Wait until there are events to write; False at the end."""
        with self._state:
            self._state.wait_for(lambda: self._texts or self._closing)
            self._state.wait_for(
                lambda: self._closing or len(self._texts) >= BACKLOG, PERIOD_SECONDS
            )
            return not self._closing

    def _write_gathered(self) -> None:
        with self._state:
            texts, self._texts = self._texts, []
            self._state.notify_all()
        if self.problem:
            return
        try:
            write_all(self._output.fd, "".join(texts).encode())
        except OSError as error:
            self._give_up(reason_of(error))

    def _give_up(self, reason: str) -> None:
        with self._state:
            self.problem = f"the trace {self._path} is not complete: {reason}"
            self._state.notify_all()
