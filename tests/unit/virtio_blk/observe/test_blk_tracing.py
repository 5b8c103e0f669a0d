"""The trace of a disk: its events, their order, and their relations."""

import errno
from typing import Any

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, Short, fill

from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_GET_ID
from pykvm.devices.virtio_blk.image import file
from pykvm.devices.virtio_blk.observe.tracing import DiskTrace
from pykvm.trace.events import EVENTS, matching

EIO = errno.EIO
Told = tuple[str, dict[str, Any]]


class Recorder:
    """A Sink that keeps everything."""

    def __init__(self, patterns: str = "*") -> None:
        self.told: list[Told] = []
        self._wanted = matching(patterns)

    def wants(self, event: str) -> bool:
        return event in self._wanted

    def record(self, event: str, ns: int, disk: str, queue: int, fields: dict[str, Any]) -> None:
        assert disk == "virtio0"
        assert event in EVENTS
        if self.wants(event):
            self.told.append((event.removeprefix("virtio_blk."), {"ns": ns, **fields}))

    def of(self, *names: str) -> list[tuple[object, ...]]:
        """Name, kind, sector and the requests of the events with one of ``names``, in order."""
        return [
            (name, fields["kind"], fields["sector"], fields.get("requests", fields.get("request")))
            for name, fields in self.told
            if name in names
        ]

    def fields(self, name: str) -> list[dict[str, Any]]:
        return [fields for told, fields in self.told if told == name]

    def names(self) -> list[str]:
        return [name for name, _ in self.told]


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


def traced(make: Maker, seen: Recorder, script: EngineScript, **options: object) -> Bench:
    return make(script, trace=DiskTrace(seen, "virtio0"), **options)


def answer(bench: Bench, *heads: int) -> list[int]:
    bench.kick()
    return [bench.wait(head)[0] for head in heads]


def test_from_the_ring_to_the_answer(make: Maker, seen: Recorder) -> None:
    bench = traced(make, seen, EngineScript())
    answer(bench, bench.read(7, 2))
    bench.transport.reset()
    assert seen.names() == [
        *("negotiate", "activate"),
        *("request", "submit", "complete", "done"),
        "reset",
    ]
    assert "VIRTIO_BLK_F_FLUSH" in seen.fields("negotiate")[0]["names"]
    submit, complete, done = (seen.fields(name)[0] for name in ("submit", "complete", "done"))
    assert submit["operation"] == complete["operation"] == 0
    assert (submit["segments"], submit["durable"]) == (1, False)
    assert (complete["errno"], complete["moved"], complete["length"]) == (0, 1024, 1024)
    assert complete["took_ns"] == complete["ns"] - submit["ns"]
    assert (done["status"], done["errno"], done["sector"], done["length"]) == ("ok", 0, 7, 1024)
    assert done["took_ns"] == done["ns"] - seen.fields("request")[0]["ns"]


def test_members_of_merged_operations(make: Maker, seen: Recorder) -> None:
    bench = traced(make, seen, EngineScript())
    answer(
        bench, bench.write(8, fill("a")), bench.write(9, fill("b")), bench.flush(), bench.read(3)
    )
    assert seen.of("merge") == [("merge", "write", 8, [0, 1])]
    assert seen.of("submit") == [
        ("submit", "write", 8, [0, 1]),
        ("submit", "read", 3, [3]),
        ("submit", "flush", 0, [2]),
    ]
    assert sorted(fields["request"] for fields in seen.fields("done")) == [0, 1, 2, 3]
    assert bench.stats()["wr_merged"] == sum(len(f["requests"]) - 1 for f in seen.fields("merge"))


def test_requests_that_are_not_executed(make: Maker, seen: Recorder) -> None:
    bench = traced(make, seen, EngineScript())
    heads = [bench.read(1 << 40), bench.send(VIRTIO_BLK_T_GET_ID, size=20), bench.send(77)]
    answer(bench, *heads)
    assert [
        (name, fields["head"], fields["kind"], fields["status"])
        for name, fields in seen.told
        if "status" in fields
    ] == [
        ("refuse", heads[0], "read", "ioerr"),
        ("answer", heads[1], "get_id", "ok"),
        ("refuse", heads[2], "type 77", "unsupp"),
    ]


def test_second_attempts(make: Maker, seen: Recorder) -> None:
    """A bad sector sends the members of a merged run again; a short read its rest."""
    faults = Faults({("read", 1): [EIO], ("read", 20): [Short(700)]})
    bench = traced(make, seen, EngineScript(faults))
    assert answer(bench, bench.read(0), bench.read(1), bench.read(20, 4)) == [0, 1, 0]
    assert seen.of("retry") == [("retry", "read", 0, [0, 1]), ("retry", "read", 20, [2])]
    assert [fields["operations"] for fields in seen.fields("retry")] == [2, 1]
    (error,) = seen.fields("error")
    assert (error["request"], error["error"], error["action"]) == (1, "EIO", "report")
    done = {
        fields["request"]: (fields["status"], fields["errno"]) for fields in seen.fields("done")
    }
    assert done == {0: ("ok", 0), 1: ("ioerr", EIO), 2: ("ok", 0)}


def test_the_pieces_of_a_large_request_are_no_second_attempts(
    make: Maker, seen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "max_transfer", lambda fd: 512)
    bench = traced(make, seen, EngineScript())
    answer(bench, bench.write(0, fill("s") * 40))
    assert [fields["sector"] for fields in seen.fields("submit")] == list(range(40))
    assert seen.names().count("done") == 1
    assert "retry" not in seen.names()


def test_stop_and_resume(make: Maker, seen: Recorder) -> None:
    script = EngineScript(Faults({("write", 5): [errno.ENOSPC]}))
    bench = traced(make, seen, script, werror=ErrorPolicy.STOP, merge=MergePolicy.OFF)
    head = bench.write(5, fill("n"))
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    bench.device.resume()
    bench.wait(head)
    steps = [name for name in seen.names() if name in ("error", "stop", "resume", "done")]
    assert steps == ["error", "stop", "resume", "done"]
    assert seen.fields("error")[0]["action"] == "stop"
    assert seen.fields("resume")[0]["requests"] == 1


def test_kept_requests_beyond_the_new_end_are_traced(make: Maker, seen: Recorder) -> None:
    script = EngineScript(Faults({("write", SECTORS - 1): [errno.ENOSPC]}))
    bench = traced(make, seen, script, werror=ErrorPolicy.STOP)
    head = bench.write(SECTORS - 1, fill("n"))
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    bench.device.resize(512)
    bench.device.resume()
    bench.wait(head)
    (done,) = seen.fields("done")
    assert (done["request"], done["status"], done["errno"]) == (0, "ioerr", EIO)


def test_a_pause_is_traced_once(make: Maker, seen: Recorder) -> None:
    bench = traced(make, seen, EngineScript())
    for _ in range(2):
        bench.device.pause()
    bench.device.resume()
    answer(bench, bench.read(0))
    assert [name for name in seen.names() if name in ("stop", "resume")] == ["stop", "resume"]


def test_a_new_size_and_a_new_cache_mode_are_traced(make: Maker, seen: Recorder) -> None:
    bench = traced(make, seen, EngineScript())
    bench.device.resize(1 << 20)
    bench.device.write_config(32, 1, 0)
    assert [fields["sectors"] for fields in seen.fields("resize")] == [2048]
    assert [fields["writeback"] for fields in seen.fields("cache")] == [False]


def test_a_broken_ring(make: Maker, seen: Recorder) -> None:
    bench = traced(make, seen, EngineScript())
    bench.transport.drivers[0].offer(5000)
    bench.kick()
    reason = bench.transport.wait_broken(10)
    assert [fields["reason"] for fields in seen.fields("broken")] == [reason]


def test_only_wanted_events_are_traced(make: Maker) -> None:
    seen = Recorder("*.done:*.merge")
    bench = traced(make, seen, EngineScript())
    answer(bench, bench.read(0), bench.read(1), bench.read(9))
    assert seen.names() == ["merge", "done", "done", "done"]
