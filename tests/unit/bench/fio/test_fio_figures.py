"""From fio's output and the device's counters to tables and drawings."""

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from pykvm.bench.fio.chart import chart_of
from pykvm.bench.fio.device import Reading, between, by_group
from pykvm.bench.fio.figures import FioOutput, parse_output, progress_of
from pykvm.bench.fio.in_guest import FioRun, prepare
from pykvm.bench.fio.report import EMULATED, text_of
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.observe.stats import Stats
from pykvm.errors import UsageError

READ, WRITE = 40960, 8192


def direction(requests: int, size: int, iops: float, microseconds: float) -> dict[str, Any]:
    """One direction of a job, as fio 3.33 writes it, as far as it is used."""
    times = {"mean": microseconds * 1000, "percentile": {}}
    for name, factor in (("50.000000", 1), ("99.000000", 2), ("99.900000", 3)):
        times["percentile"][name] = int(1000 * microseconds * factor)
    return {
        "total_ios": requests,
        "io_bytes": size,
        "iops": iops,
        "bw_bytes": size,
        "runtime": 2000,
        "clat_ns": times,
        "lat_ns": {"mean": 2000 * microseconds},
    }


def job(name: str, group: int, error: int = 0, **directions: Any) -> dict[str, Any]:
    return {
        "jobname": name,
        "groupid": group,
        "error": error,
        "usr_cpu": 10.0,
        "sys_cpu": 15.5,
        **directions,
    }


def output(iops: float = 5.0) -> str:
    first = job("first", 0, read=direction(10, READ, iops, 400), write=direction(0, 0, 0, 0))
    second = job("second", 1, write=direction(2, WRITE, 1.0, 800))
    second["sync"] = {"total_ios": 4, "lat_ns": {"mean": 9000.0, "percentile": {}}}
    return json.dumps({"fio version": "fio-3.33", "jobs": [first, second]}, indent=2)


def readings() -> list[Reading]:
    """The device before the jobs, during the first, between them, and after the second."""
    stats, found = Stats(), []

    def read(notifications: int, exits: int) -> None:
        found.append(Reading(Stats.total([stats]), notifications, exits))

    read(100, 50)
    for count in (4, 6):
        for _ in range(count):
            stats.done(VIRTIO_BLK_T_IN, 4096, 100_000, 0)
        read(found[-1].notifications + count, 50)
    stats.merged(VIRTIO_BLK_T_OUT, 1)
    for _ in range(2):
        stats.done(VIRTIO_BLK_T_OUT, 4096, 200_000, 0)
    stats.done(VIRTIO_BLK_T_FLUSH, 0, 4000, 0)
    read(113, 56)
    return found


def run(iops: float = 5.0) -> FioRun:
    return FioRun(parse_output(output(iops)), readings())


def test_each_operation_of_each_job_has_its_figures():
    found = parse_output(output())
    assert [(one.job, one.operation, one.group) for one in found.jobs] == [
        ("first", "read", 0),
        ("second", "write", 1),
        ("second", "sync", 1),
    ]
    read, _, sync = found.jobs
    assert (read.requests, read.size, read.iops) == (10, READ, 5.0)
    assert (read.p50, read.p99, read.p999, read.whole) == (400, 800, 1200, 800)
    assert read.cpu == 25.5
    assert (sync.iops, sync.whole, sync.p50) == (2.0, 9.0, None)


def test_the_json_is_unchanged_and_fios_words_before_it_are_apart():
    found = parse_output("note: iodepth has no effect\n" + output())
    assert found.json == output()
    assert found.notes == "note: iodepth has no effect"


def test_failed_jobs_have_their_error():
    text = json.dumps({"jobs": [job("bad", 0, error=5), job("good", 0)]})
    assert parse_output(text).errors == {"bad": 5}


@pytest.mark.parametrize("text", ["", "fio: no job", "[]", "{}", '{"jobs": [{"error": 0}]}', "{"])
def test_anything_else_is_refused(text: str):
    with pytest.raises(ValueError, match=r".*"):
        parse_output(text)


def test_groups_are_told_apart_by_their_bytes():
    found = by_group(readings(), parse_output(output()))
    first, second = found[0], found[1]
    assert [one.operation for one in first.services] == ["read"]
    assert first.services[0].requests == 10
    assert (first.notifications, first.exits) == (1000, 0)
    assert [one.operation for one in second.services] == ["write", "flush"]
    write = second.service("write")
    assert write is not None
    assert (write.requests, write.mean, write.merged) == (2, 200, 1)
    assert write.p50 == pytest.approx(200, rel=0.13)
    assert (second.notifications, second.exits) == (1000, 2000)


def test_a_cache_between_fio_and_the_device_leaves_one_group():
    assert by_group(readings()[:-1], parse_output(output())) == {}
    cached = FioRun(parse_output(output()), readings()[:-1])
    assert "first, second" in text_of([cached], [], False)


def test_figures_are_differences():
    _, middle, _, last = readings()
    found = between(middle, last)
    assert found.counters["rd_operations"] == 6
    assert found.service("read").requests == 6  # type: ignore[union-attr]
    assert found.service("discard") is None


def test_the_text():
    jobs, device, end = text_of([run()], [], True).split("\n\n")
    head, first, second, sync = jobs.splitlines()
    assert head.split()[:4] == ["job", "op", "IOPS", "MiB/s"]
    assert first.split() == ["first", "read", "5.00", "0.04", "400", "800", "1", "200", "25.5"]
    assert sync.split()[:4] == ["second", "sync", "2.00", "-"]
    of_first = device.splitlines()[1].split()
    assert of_first[:3] == ["first", "read", "10"]
    assert "12.5 %" in device  # 100 of 800 µs
    assert end == EMULATED + "\n"
    assert second.startswith("second")


def test_the_spread_of_several_runs():
    jobs = text_of([run(4.0), run(5.0), run(9.0)], [], False).split("\n\n")[0]
    head, first = jobs.splitlines()[:2]
    assert head.split()[2:5] == ["IOPS", "least", "most"]
    assert first.split()[2:5] == ["5.00", "4.00", "9.00"]


def test_a_comparison_with_an_earlier_output():
    text = text_of([run(6.0)], [parse_output(output(3.0))], False).split("\n\n")[2]
    first = text.splitlines()[1].split()
    assert first[2:6] == ["6.00", "3.00", "2.00", "2.00-2.00"]
    other = FioOutput("", "", (), {})
    assert "No job of the earlier output" in text_of([run()], [other], False)


def test_the_drawing_has_a_bar_for_each_row():
    drawing = ElementTree.fromstring(chart_of([run(4.0), run(6.0)], ""))
    labels = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "first read" in labels
    assert "device: second flush" in labels


def test_the_histogram():
    text = text_of([run(), run()], [], False, histogram=True).split("\n\n")[2]
    assert [line.split() for line in text.splitlines()] == [
        ["service", "time", "read", "write", "flush"],
        ["<", "4.10", "µs", "0", "0", "2"],
        *(f"< {bound} µs 0 0 0".split() for bound in ("8.19", "16.4", "32.8", "65.5")),
        ["<", "131", "µs", "20", "0", "0"],
        ["<", "262", "µs", "0", "4", "0"],
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "Jobs: 1 (f=1): [r(1)][57.1%][r=12 IOPS][eta 00m:03s]",
            "57.1%, r=12 IOPS, time left 00m:03s",
        ),
        (
            "Jobs: 1 (f=0)\rJobs: 2 (f=2): [R(1),P(1)][2.0%][eta 01m:00s]\r",
            "2.0%, time left 01m:00s",
        ),
        ("Jobs: 1 (f=1)", ""),
        ("", ""),
    ],
)
def test_progress(line: str, words: str):
    assert progress_of(line) == words


class NoFio:
    """A guest whose shell finds no fio."""

    def run(self, command: str, check: bool) -> "NoFio":
        assert not check
        return self

    status = 127


def test_a_guest_without_fio():
    with pytest.raises(UsageError, match="has no fio"):
        prepare(NoFio(), "", {})  # type: ignore[arg-type]
