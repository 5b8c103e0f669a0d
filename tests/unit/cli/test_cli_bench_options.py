"""The options of ``pykvm bench``, and the errors for wrong values."""

from pathlib import Path

import pytest

from pykvm.bench.disk.script import LoadScript
from pykvm.bench.disk.tools.base import Job
from pykvm.bench.disk.tools.choice import tools_against, tools_of_modes
from pykvm.bench.disk.workload import DEFAULTS, DEPTHS, Shapes, Workload, parse_workloads
from pykvm.cli.bench.disk.options import (
    check_room,
    check_wait,
    parse_busy,
    parse_caches,
    parse_number,
    parse_numbers,
)
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the PATH, with a qemu and a fio that do nothing."""
    for name in ("qemu-system-x86_64", "fio"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_default_is_every_pattern_at_every_depth():
    found = parse_workloads(DEFAULTS)
    assert len(found) == 4 * len(DEPTHS) + 4
    assert found[0] == Workload("randread", 4096, 1)
    assert found[-3:] == [
        Workload("seqwrite", 128 << 10, 8),
        Workload("seqread", 1 << 20, 8),
        Workload("seqwrite", 1 << 20, 8),
    ]


def test_of_the_default_those_that_the_guest_has_no_room_for_are_left_out():
    found = parse_workloads(DEFAULTS, Shapes([8, 128], queues=[1, 4]), skip_large=True)
    assert [(w.block, w.depth, w.queues) for w in found if w.block > 4096] == [
        *((128 << 10, 8, 1), (128 << 10, 8, 1), (1 << 20, 8, 1), (1 << 20, 8, 1)),
        *((128 << 10, 8, 4), (128 << 10, 8, 4)),
    ]


@pytest.mark.parametrize(
    ("names", "shapes"),
    [
        (DEFAULTS, Shapes()),
        (["randread-512"], Shapes([128], [126], [4])),
        (["seqread-16k"], Shapes([128], [126], [4])),
        (["seqread-1m"], Shapes([2], [126], [4])),
    ],
)
def test_the_guest_has_room_for_the_requests_in_flight(names: list[str], shapes: Shapes):
    workloads = parse_workloads(names, shapes)
    cpus = max(shapes.queues)
    script = LoadScript(workloads, span=1 << 20, seconds=1, tsc_khz=10**6, cpus=cpus)
    assert script.marks == len(workloads)


def test_names_and_depths():
    found = parse_workloads(["seqwrite-512", "randread"], Shapes([2, 3]))
    assert [(w.kind, w.block, w.depth) for w in found] == [
        ("seqwrite", 512, 2),
        ("seqwrite", 512, 3),
        ("randread", 4096, 2),
        ("randread", 4096, 3),
    ]
    assert [(w.random, w.write) for w in found[1:3]] == [(False, True), (True, False)]
    assert [w.family for w in found[:3:2]] == ["seqwrite 512 B", "randread 4 KiB"]
    assert parse_workloads(["seqread-1m"]) == parse_workloads(["seqread-1024k"])
    assert parse_workloads(["seqread-1m"])[0].family == "seqread 1 MiB"
    assert parse_workloads(["randread", "randread-4k"]) == parse_workloads(["randread"])


@pytest.mark.parametrize(
    ("name", "depth", "words"),
    [
        ("read", 1, "no workload 'read'"),
        ("randread-4g", 1, "no workload"),
        ("randread-700", 1, "multiple of 512"),
        ("randread-0k", 1, "multiple of 512"),
        ("randread-2048k", 1, "multiple of 512"),
        ("randread-2m", 1, "up to 1m"),
        ("randread", 129, "depth cannot be 129"),
        ("randread", 0, "depth cannot be 0"),
        ("randread-128k", 65, "more than 8 MiB in flight"),
        ("seqread-1m", 9, "more than 8 MiB in flight"),
    ],
)
def test_impossible_workloads(name: str, depth: int, words: str):
    with pytest.raises(UsageError, match=words):
        parse_workloads([name], Shapes([depth]))


def test_values():
    assert parse_numbers("1,32", "--depth") == [1, 32]
    with pytest.raises(UsageError, match="--depth cannot be ''"):
        parse_numbers("", "--depth")
    assert parse_caches("none") == [CacheMode.NONE]
    assert parse_caches("writeback,none") == [CacheMode.WRITEBACK, CacheMode.NONE]
    assert (parse_busy("0"), parse_busy("64")) == (0, 64)
    with pytest.raises(UsageError, match="--busy cannot be more than 64"):
        parse_busy("65")
    for wrong in ("", "x", "-1", "1.5", "²", "9999999999"):
        with pytest.raises(UsageError):
            parse_number(wrong, "--runs", 1)
    with pytest.raises(UsageError, match="--queues cannot be more than 4"):
        parse_numbers("1,5", "--queues", 4)
    with pytest.raises(UsageError, match="--cache cannot be 'maybe'; use writeback"):
        parse_caches("maybe")
    with pytest.raises(UsageError, match="--cache cannot be ''"):
        parse_caches("none,")
    with pytest.raises(UsageError, match="--cache has 'none' twice"):
        parse_caches("none,writeback,none")


def test_shapes_multiply_and_those_of_one_machine_are_together():
    found = parse_workloads(["randread", "exits"], Shapes([1, 8], [1, 4], [1, 2], [1, 3]))
    machines = [(w.queues, w.vms) for w in found]
    assert machines == sorted(machines, key=lambda m: m[::-1])
    assert len(found) == 4 * (4 + 1)
    assert found[0].alone
    assert not any(workload.alone for workload in found[1:] if workload.depth != 8)
    assert [w.family for w in found[-3:]] == [
        "randread 4 KiB, 4 segments, 2 queues, 3 VMs",
        "randread 4 KiB, 4 segments, 2 queues, 3 VMs",
        "exits, 2 queues, 3 VMs",
    ]


def test_a_job_falls_into_parts_of_one_machine_each(tmp_path: Path):
    workloads = parse_workloads(["randread", "seqread"], Shapes([1], queues=[1, 4]))
    job = Job(workloads, [tmp_path], 1 << 20, CacheMode.NONE, 1, 0, tmp_path, 1, tmp_path, cpus=2)
    parts = job.parts()
    assert [(part.queues, part.vms, part.vcpus) for part in parts] == [(1, 1, 1), (4, 1, 2)]
    assert [workload for part in parts for workload in part.workloads] == workloads


def test_each_queue_has_room():
    large = parse_workloads(["seqread-1024k"], Shapes([1], queues=[2, 3]))
    check_room(large[:1], 2 << 20)
    with pytest.raises(UsageError, match="2 MiB is too small for blocks of 1024 KiB in 3 queues"):
        check_room(large, 2 << 20)
    with pytest.raises(UsageError, match="more than 8 MiB in flight"):
        parse_workloads(["seqread-1024k"], Shapes([3], queues=[3]))


def test_a_guest_that_halts():
    check_wait(parse_workloads(["randread"]), "interrupt", False)
    for names, queues, exits in [
        ("randread", 2, False),
        ("randread", 1, True),
        ("exits", 1, False),
    ]:
        with pytest.raises(UsageError, match="only with --wait poll"):
            check_wait(parse_workloads([names], Shapes(queues=[queues])), "interrupt", exits)


@pytest.mark.usefixtures("programs")
def test_qemu_in_every_mode_that_the_cache_allows():
    cached = [tool.label for tool in tools_against("qemu", CacheMode.WRITEBACK)]
    direct = [tool.label for tool in tools_against("qemu", CacheMode.NONE)]
    assert len(cached) == 4
    assert len(direct) == 6
    assert not any("native" in label for label in cached)
    assert direct[2:4] == ["aio=native", "aio=native,poll-max-ns=1000000"]


@pytest.mark.usefixtures("programs")
def test_each_cache_mode_has_the_tools_that_suit_it():
    modes = [CacheMode.WRITEBACK, CacheMode.NONE]
    found = tools_of_modes(["qemu,aio=native", "fio"], modes)
    assert [tool.label for tool in found[CacheMode.WRITEBACK]] == [
        *("ioengine=psync", "ioengine=io_uring")
    ]
    assert [tool.label for tool in found[CacheMode.NONE]] == [
        *("aio=native", "ioengine=psync", "ioengine=io_uring", "ioengine=libaio")
    ]
    assert tools_of_modes([], modes) == {mode: [] for mode in modes}
    with pytest.raises(UsageError, match="aio=native works only with O_DIRECT; add --cache none"):
        tools_of_modes(["qemu,aio=native"], modes[:1])


@pytest.mark.usefixtures("programs")
def test_poll_max_ns_of_0_is_no_polling_and_none_is_qemus_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("pykvm.bench.disk.tools.qemu.qemu_program", lambda: "qemu")
    (usual,) = tools_against("qemu,aio=threads", CacheMode.NONE)
    (never,) = tools_against("qemu,aio=threads,poll-max-ns=0", CacheMode.NONE)
    assert (usual.label, never.label) == ("aio=threads", "aio=threads,poll-max-ns=0")


def test_machines_of_qemu_have_labels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pykvm.bench.disk.tools.qemu.qemu_program", lambda: "qemu")
    (one,) = tools_against("qemu,aio=threads,machine=q35", CacheMode.NONE)
    assert one.label == "aio=threads,machine=q35"


def test_fio_has_no_command_for_a_workload_that_it_cannot_carry_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("shutil.which", lambda name: name)
    (fio,) = tools_against("fio,ioengine=io_uring", CacheMode.NONE)
    workloads = parse_workloads(["exits"])
    job = Job(workloads, [tmp_path], 1 << 20, CacheMode.NONE, 1, 0, tmp_path, 1, tmp_path)
    assert fio.command(job) == []


def test_one_configuration():
    def labels(text: str) -> list[tuple[str, str]]:
        return [(tool.name, tool.label) for tool in tools_against(text, CacheMode.WRITEBACK)]

    assert labels("qemu,aio=io_uring,poll-max-ns=5") == [("qemu", "aio=io_uring,poll-max-ns=5")]
    assert labels("qemu,aio=threads,memory=memfd") == [("qemu", "aio=threads,memory=memfd")]
    assert [label for _, label in labels("qemu,memory=memfd")][-1].endswith(",memory=memfd")
    assert labels("fio,ioengine=sync") == [("fio", "ioengine=sync")]
    assert labels("pykvm,merge=off,seg-max=4") == [("pykvm", "merge=off,seg-max=4")]


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("qmu", "did you mean 'qemu'"),
        ("xen", "use qemu, fio, pykvm"),
        ("qemu,aoi=threads", "no option 'aoi'"),
        ("qemu,memory=disk", "memory cannot be 'disk'; use default or memfd"),
        ("qemu,aio", "write KEY=VALUE"),
        ("qemu,poll-max-ns=long", "number of nanoseconds"),
        ("fio,x=1", "use ioengine="),
    ],
)
def test_tools_that_are_not_known(text: str, words: str):
    with pytest.raises(UsageError, match=words):
        tools_against(text, CacheMode.WRITEBACK)


@pytest.mark.parametrize(("name", "words"), [("qemu", "qemu-system-x86"), ("fio", "Debian: fio")])
def test_tools_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=words):
        tools_against(name, CacheMode.WRITEBACK)
