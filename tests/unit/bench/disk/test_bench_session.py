"""The order of the tools' runs, and the report on several cache modes."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pykvm.bench.disk.busy import BusyLoops
from pykvm.bench.disk.noise import Noise
from pykvm.bench.disk.report.chart import chart_of
from pykvm.bench.disk.report.json_object import as_object
from pykvm.bench.disk.report.table import as_text
from pykvm.bench.disk.sample import Run, Sample
from pykvm.bench.disk.session import Measurement, Session, measure
from pykvm.bench.disk.tools.base import Job, Progress
from pykvm.bench.disk.workload import Shapes, parse_workloads
from pykvm.bench.image import check_on_disk, settle
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import PykvmError, UsageError

SVG = "{http://www.w3.org/2000/svg}"
WORKLOADS = parse_workloads(["randread"], Shapes([1, 8]))


class Recorder:
    """A tool that notes its runs in ``log``, and whose figures are always the same."""

    def __init__(self, name: str, log: list[tuple[str, str, int]]) -> None:
        self.name = name
        self.label = ""
        self._log = log

    def version(self) -> str:
        """See Tool."""
        return "1"

    def note(self, job: Job) -> str:
        """See Tool."""
        return f"note on {job.cache.value}"

    def command(self, job: Job) -> list[str]:
        """See Tool."""
        return [self.name, job.cache.value]

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """See Tool."""
        self._log.append((job.cache.value, self.name, seed))
        progress(0)
        return Run((Sample(1000, 1, 2, 3, 4), Sample(2000, 1, 2, 3, 4)), start=0.5)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"content")
    return path


def session_of(
    disk: Path, caches: Sequence[CacheMode], runs: int = 1
) -> tuple[Session, list[tuple[str, str, int]], list[str]]:
    """The session of two tools, the order of their runs, and the reported progress."""
    log: list[tuple[str, str, int]] = []
    said: list[str] = []
    tools = [Recorder("pykvm", log), Recorder("qemu", log)]
    parts = [
        Measurement(Job(WORKLOADS, [disk], 7, cache, 1, 0, disk, 1, disk.parent), tools)
        for cache in caches
    ]
    return measure(parts, runs, BusyLoops([]), said.append), log, said


def test_cache_modes_take_turns_in_each_run(disk: Path):
    session, log, said = session_of(disk, [CacheMode.WRITEBACK, CacheMode.NONE], runs=2)
    assert log == [
        (cache, tool, seed)
        for seed in (1, 2, 3)
        for cache in ("writeback", "none")
        for tool in ("pykvm", "qemu")
    ]
    assert [len(runs) for part in session.parts for runs in part.runs] == [2, 2, 2, 2]
    assert [(row.cache, row.workload.depth) for row in session.rows()] == [
        *(("writeback", 1), ("writeback", 8), ("none", 1), ("none", 8))
    ]
    assert "run 2 of 2, cache none, qemu: randread 4 KiB, depth 1" in said
    assert disk.read_bytes() == b"content"


def test_one_mode_is_not_named(disk: Path):
    session, _, said = session_of(disk, [CacheMode.NONE])
    assert not any("cache none" in words for words in said)
    text = as_text(session)
    assert text.startswith("workload ")
    own, theirs, last = text.split("\n\n")
    assert own.count("\n") == theirs.count("\n") == 2
    assert [line.split()[0] for line in last.splitlines()] == ["pykvm:", "qemu:", "meanwhile"]


def test_several_modes_have_tables_of_their_own(disk: Path):
    session, _, _ = session_of(disk, [CacheMode.WRITEBACK, CacheMode.NONE])
    first, *rest = as_text(session).split("\n\n")
    assert first == "cache writeback"
    assert rest[3] == "cache none"
    assert len(rest) == 8
    assert rest[2].endswith("note on writeback")
    assert rest[6].endswith("note on none")
    assert rest[7].startswith("meanwhile other programs used")


def test_a_drawing_of_several_modes(disk: Path):
    session, _, _ = session_of(disk, [CacheMode.WRITEBACK, CacheMode.NONE])
    root = ElementTree.fromstring(chart_of(session.rows()))
    # Two modes, two diagrams each, two tools, and in each line both depths.
    lines = [line.get("points", "") for line in root.iter(f"{SVG}polyline")]
    assert [len(line.split()) for line in lines] == [2] * 8
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "randread 4 KiB, cache writeback" in texts
    assert "randread 4 KiB, cache none" in texts


def test_json_of_several_modes(disk: Path):
    session, _, _ = session_of(disk, [CacheMode.WRITEBACK, CacheMode.NONE])
    found = as_object(session)
    assert found["settings"]["cache"] == ["writeback", "none"]
    assert found["settings"]["busy"] == 0
    assert [row["cache"] for row in found["rows"]] == ["writeback", "writeback", "none", "none"]
    assert [(tool["cache"], tool["name"], tool["command"]) for tool in found["tools"]] == [
        (cache, name, [name, cache])
        for cache in ("writeback", "none")
        for name in ("pykvm", "qemu")
    ]


def test_busy_loops_are_reported(disk: Path):
    session, _, _ = session_of(disk, [CacheMode.NONE])
    session.noise, session.busy = Noise(0.25, 0, 0.5), 1
    last = as_text(session).splitlines()[-1]
    assert last.startswith(
        "beside 1 busy loop, with 0.50 CPUs; meanwhile other programs used 0.25 of "
    )
    session.busy = 2
    assert "beside 2 busy loops, with" in as_text(session)


def test_a_disk_that_went_away(disk: Path):
    disk.unlink()
    with pytest.raises(PykvmError, match="cannot be read again: no such file"):
        session_of(disk, [CacheMode.WRITEBACK, CacheMode.NONE])


def test_each_tool_begins_with_nothing_left_to_be_written(
    disk: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without this, a tool pays for the dirty pages of the tool before it."""
    said: list[str] = []
    sync = os.fdatasync

    def fdatasync(handle: int) -> None:
        said.append("sync")
        sync(handle)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    _, _, progress = session_of(disk, [CacheMode.WRITEBACK, CacheMode.NONE])
    starts = [words for words in progress if words.endswith(": start")]
    assert len(said) == len(starts) > 2


@pytest.mark.parametrize("cache", [CacheMode.NONE, CacheMode.WRITEBACK])
def test_the_page_cache_is_filled_or_dropped(
    disk: Path, monkeypatch: pytest.MonkeyPatch, cache: CacheMode
):
    calls: list[object] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: calls.append(arguments[1:]))
    monkeypatch.setattr("pykvm.bench.image._read_all", calls.append)
    settle(disk, disk.stat().st_size, cache)
    assert calls == ([(0, 0, os.POSIX_FADV_DONTNEED)] if cache.direct else [disk])
    calls.clear()
    settle(disk, 1 << 60, CacheMode.WRITEBACK)  # no page cache holds this
    assert not calls


def test_a_file_in_memory_is_no_disk():
    path = Path("/dev/shm")
    if not path.is_dir() or "tmpfs /dev/shm " not in Path("/proc/mounts").read_text():
        pytest.skip("/dev/shm is no tmpfs here")
    with tempfile.NamedTemporaryFile(dir=path) as file, pytest.raises(UsageError, match="tmpfs"):
        check_on_disk(Path(file.name))


def test_devices_and_other_filesystems_are_disks(tmp_path: Path):
    check_on_disk(Path("/dev/null"))
    path = tmp_path / "file"
    path.touch()
    if any(line.split()[2] == "tmpfs" for line in mounts_of(path)):
        pytest.skip("temporary files are in memory here")
    check_on_disk(path)


def mounts_of(path: Path) -> list[str]:
    """The lines of /proc/mounts for the folders above ``path``, that of the nearest one only."""
    lines = Path("/proc/mounts").read_text().splitlines()
    for folder in path.parents:
        found = [line for line in lines if line.split()[1] == str(folder)]
        if found:
            return found[-1:]
    return []
