"""A trace in memory."""

import json
import threading

import pytest

from pykvm import MachineConfig, TraceLog, TraceOptions, UsageError
from pykvm.trace.events import DEVICE, DISK, MERGE, STOP
from pykvm.trace.file import TraceFile


def test_an_event_has_the_members_of_a_files_line(tmp_path) -> None:
    log = TraceLog()
    with TraceFile(TraceOptions(tmp_path / "t")) as file:
        for sink in (log, file):
            sink.record(MERGE, 6, "virtio0", 2, {"requests": [1, 2]})
            sink.record(STOP, 7, "virtio1", DEVICE, {})
    lines = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
    assert list(log) == lines[1:-1]
    assert list(log) == list(log)


def test_only_wanted_events_are_kept() -> None:
    log = TraceLog("*.stop")
    for event in (STOP, MERGE, DISK):
        assert log.wants(event) == (event == STOP)
        log.record(event, 1, "virtio0", 0, {})
    assert [event["event"] for event in log] == [STOP]


def test_the_last_events_are_kept_and_the_others_counted() -> None:
    log = TraceLog(most=2)
    for ns in range(5):
        log.record(STOP, ns, "virtio0", 0, {})
    assert [event["ns"] for event in log] == [3, 4]
    assert log.dropped == 3
    log.clear()
    assert (list(log), log.dropped) == ([], 0)


def test_reading_while_events_come() -> None:
    log = TraceLog(most=100)
    over = threading.Event()

    def record() -> None:
        for ns in range(20_000):
            log.record(STOP, ns, "virtio0", 0, {})
        over.set()

    thread = threading.Thread(target=record)
    thread.start()
    while not over.is_set():
        times = [event["ns"] for event in log]
        assert times == list(range(times[0], times[-1] + 1)) if times else True
    thread.join()
    assert [event["ns"] for event in log][-1] == 19_999


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="there is no trace event 'nothing'"):
        TraceLog("nothing")
    for wrong in (0, "5"):
        with pytest.raises(UsageError, match=r"^most cannot be "):
            TraceLog(most=wrong)
    with pytest.raises(UsageError, match=r"^trace cannot be 3"):
        MachineConfig(guest="guest", trace=3)
    log = TraceLog()
    assert MachineConfig(guest="guest", trace=log).trace is log
