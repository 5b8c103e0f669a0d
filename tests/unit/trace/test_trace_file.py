"""The file of a trace: formats, filters, the end of a run, and the rest after a crash."""

import json
import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from patience import PATIENCE, ends, in_thread, until

from pykvm.errors import UsageError
from pykvm.trace import TraceFormat, TraceOptions, file
from pykvm.trace.events import EVENTS, matching
from pykvm.trace.file import TraceFile
from pykvm.trace.formats import Chrome

MERGE, STOP = "virtio_blk.merge", "virtio_blk.stop"
DONE, COMPLETE, REQUEST = "virtio_blk.done", "virtio_blk.complete", "virtio_blk.request"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(path: Path) -> list[object]:
    return [line["event"] for line in lines(path)]


def span(start: int, end: int, kind: str = "read") -> dict[str, object]:
    """Fields of DONE or COMPLETE."""
    return {"kind": kind, "took_ns": end - start}


def test_json_lines(path: Path) -> None:
    with TraceFile(TraceOptions(path)) as trace:
        trace.record("trace.disk", 5, "virtio0", -1, {"path": "a\udcff\n"})
        trace.record(MERGE, 6, "virtio0", 2, {"requests": [1, 2]})
    begin, disk, merge, end = lines(path)
    assert begin["event"] == "trace.begin"
    assert begin["version"] == 1
    assert disk == {"ns": 5, "event": "trace.disk", "disk": "virtio0", "path": "a\udcff\n"}
    assert merge["queue"] == 2
    assert merge["requests"] == [1, 2]
    assert end["event"] == "trace.end"


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ("*", set(EVENTS)),
        (STOP, {STOP}),
        ("*.re[tq]*:*.merge", {REQUEST, "virtio_blk.retry", MERGE}),
    ],
)
def test_patterns_select_events(patterns: str, wanted: set[str]) -> None:
    assert matching(patterns) == wanted


@pytest.mark.parametrize("patterns", ["virtio_blk.stpo", "*.stop:", "*.stop:xyz", ""])
def test_a_pattern_that_matches_no_event_is_an_error(patterns: str) -> None:
    with pytest.raises(UsageError, match="there is no trace event"):
        matching(patterns)


def test_only_wanted_events_are_written(path: Path) -> None:
    with TraceFile(TraceOptions(path, events="*.stop")) as trace:
        assert (trace.wants(STOP), trace.wants(MERGE)) == (True, False)
        for event in EVENTS:
            trace.record(event, 1, "virtio0", 0, {})
    assert names(path) == ["trace.begin", STOP, "trace.end"]


def test_events_are_written_while_the_guest_runs(path: Path) -> None:
    """The events that pykvm recorded before it was killed can be read."""
    with TraceFile(TraceOptions(path)) as trace:
        trace.record(STOP, 1, "virtio0", 0, {})
        until(lambda: names(path)[-1:] == [STOP])
        assert names(path) == ["trace.begin", STOP]


def test_a_recording_thread_waits_and_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BACKLOG", 4)
    with TraceFile(TraceOptions(path)) as trace:
        threads = [
            threading.Thread(
                target=lambda queue=queue: [
                    trace.record(STOP, i, "virtio0", queue, {}) for i in range(200)
                ]
            )
            for queue in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    recorded = [line for line in lines(path) if line["event"] == STOP]
    for queue in range(3):
        assert [one["ns"] for one in recorded if one["queue"] == queue] == list(range(200))


class SlowDisk:
    """Delays the next call of os.write until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self._write = os.write
        monkeypatch.setattr(os, "write", self._slow_write)

    def _slow_write(self, fd: int, data: bytes) -> int:
        if not self.entered.is_set():
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
        return self._write(fd, data)


def test_a_slow_disk_delays_the_recording_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BACKLOG", 4)
    recorded: list[int] = []
    with TraceFile(TraceOptions(path)) as trace:
        slow = SlowDisk(monkeypatch)

        def record() -> None:
            for i in range(100):
                trace.record(STOP, i, "virtio0", 0, {})
                recorded.append(i)

        thread = threading.Thread(target=record)
        thread.start()
        assert slow.entered.wait(PATIENCE)
        thread.join(0.1)
        assert len(recorded) <= 8
        slow.go_on.set()
        thread.join()
    assert len(lines(path)) == 102


def test_closing_waits_for_the_write_in_progress(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = TraceFile(TraceOptions(path))
    slow = SlowDisk(monkeypatch)
    trace.record(STOP, 1, "virtio0", 0, {})
    assert slow.entered.wait(PATIENCE)
    closing = threading.Thread(target=trace.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    slow.go_on.set()
    closing.join()
    assert names(path) == ["trace.begin", STOP, "trace.end"]


def test_a_trace_begins_before_the_guest_does(path: Path) -> None:
    with TraceFile(TraceOptions(path)) as trace:
        trace.record("trace.disk", 5, "virtio0", -1, {"path": "x"})
        trace.begin()
        assert names(path) == ["trace.begin", "trace.disk"]


def test_a_machine_that_cannot_be_built_leaves_an_earlier_trace(path: Path) -> None:
    path.write_text("of the last run")
    trace = TraceFile(TraceOptions(path))
    trace.record("trace.disk", 5, "virtio0", -1, {"path": "x"})
    trace.__exit__(UsageError, UsageError("there is no such kernel"), None)
    assert path.read_text() == "of the last run"


def test_a_trace_never_overwrites_a_file_that_the_machine_reads(path: Path) -> None:
    path.write_text("an image")
    with pytest.raises(UsageError, match="would overwrite"):
        TraceFile(TraceOptions(path), [path])
    assert path.read_text() == "an image"


def test_a_full_disk_ends_the_trace_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(file, "BACKLOG", 4)
    with TraceFile(TraceOptions(path)) as trace:
        monkeypatch.setattr(os, "write", full)
        for i in range(100):
            trace.record(STOP, i, "virtio0", 0, {})
    assert trace.problem == f"the trace {path} is not complete: no space left on device"


def test_closing_twice_is_harmless(path: Path) -> None:
    trace = TraceFile(TraceOptions(path))
    trace.close()
    trace.close()
    trace.record(STOP, 1, "virtio0", 0, {})
    assert names(path) == ["trace.begin", "trace.end"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_a_regular_file_can_be_a_trace(path: Path, make) -> None:
    make(path)
    with pytest.raises(UsageError, match="trace"):
        TraceFile(TraceOptions(path))


def test_a_mistake_does_not_empty_the_file(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(UsageError):
        TraceFile(TraceOptions(path, events="typo"))
    assert path.read_text() == "precious"


# -- Chrome's format -------------------------------------------------------------


def chrome(*events: tuple[str, int, int, dict[str, object]]) -> list[dict[str, object]]:
    """Elements for events of one disk: (name, ns, queue, fields)."""
    form = Chrome()
    text = form.head + "".join(
        form.encode(name, ns, "virtio0", queue, fields) for name, ns, queue, fields in events
    )
    whole = json.loads(text + form.tail)
    assert json.loads(text + "]") == whole, "a crash costs the closing bracket and no more"
    return whole


def test_chrome_is_a_json_array(path: Path) -> None:
    with TraceFile(TraceOptions(path, TraceFormat.CHROME)) as trace:
        trace.record("trace.disk", 5, "virtio0", -1, {"path": "x.img"})
        trace.record(STOP, 1500, "virtio0", 0, {"a": 1})
    elements = json.loads(path.read_text())
    assert {"name": "virtio0 x.img"} in [one.get("args") for one in elements]
    (stop,) = [one for one in elements if one["name"] == STOP]
    assert (stop["ph"], stop["ts"], stop["args"]) == ("i", 1.5, {"a": 1})


def test_spans_end_at_the_time_of_their_event() -> None:
    (element,) = [one for one in chrome((DONE, 5000, 0, span(3000, 5000))) if one["ph"] == "X"]
    assert (element["name"], element["ts"], element["dur"]) == ("read", 3.0, 2.0)


def test_overlapping_spans_have_separate_tracks() -> None:
    spans = [(0, 10), (2, 11), (11, 12), (5, 20), (12, 13), (12, 30)]
    elements = chrome(*((DONE, end, 0, span(start, end)) for start, end in spans))
    tracks: dict[object, list[tuple[float, float]]] = {}
    for one in elements:
        if one["ph"] == "X":
            tracks.setdefault(one["tid"], []).append((one["ts"], one["ts"] + one["dur"]))
    assert len(tracks) == 3
    for track in tracks.values():
        assert all(one[1] <= next_[0] + 1e-9 for one, next_ in pairwise(track))


def test_queues_requests_and_operations_have_separate_tracks() -> None:
    elements = chrome(
        *((event, 9, queue, span(1, 9)) for event in (DONE, COMPLETE) for queue in (0, 1)),
        *((STOP, 9, queue, {}) for queue in (-1, 0, 1)),
    )
    named = {one["tid"]: one["args"]["name"] for one in elements if one["name"] == "thread_name"}
    used = [one["tid"] for one in elements if one["ph"] != "M"]
    assert len(set(used)) == 7
    assert set(used) == named.keys()
    assert "queue 1 operations 1" in named.values()


def test_no_thread_waits_for_a_writer_that_a_bug_has_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(fd: int, data: object) -> int:
        raise ZeroDivisionError

    def record() -> None:
        for i in range(20):
            trace.record(STOP, i, "virtio0", 0, {})

    monkeypatch.setattr(file, "BACKLOG", 4)
    trace = TraceFile(TraceOptions(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", buggy)
        assert ends(in_thread(record))
        assert ends(in_thread(record))
    trace.close()
    assert trace.problem == f"the trace {path} is not complete: ZeroDivisionError()"


def test_a_host_without_a_thread_ends_the_trace_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with TraceFile(TraceOptions(path)) as trace:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            trace.record(STOP, 1, "virtio0", 0, {})
        trace.record(STOP, 2, "virtio0", 0, {})
    assert trace.problem.endswith("not complete: the host has no thread to write it")
