"""Measurements that stop early keep their results. No guest runs."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.bench.compare.report import Sample
from pykvm.bench.fio.figures import parse_output
from pykvm.bench.fio.in_guest import FioFailed, FioRun
from pykvm.cli.bench.compare import run as compare
from pykvm.cli.bench.fio import run as fio
from pykvm.cli.progress import Stopped
from pykvm.devices.virtio_blk.observe.stats import CLASSIC
from pykvm.errors import PykvmError

FIO = '{"fio version": "fio-3.33", "jobs": [], "run": %d}'


def test_the_output_of_each_run_of_fio_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = iter((1, 2, 3))

    def run(*arguments: Any, **options: Any) -> FioRun:
        text = FIO % next(numbers)
        if '"run": 2' in text:
            raise FioFailed("fio reported an error", "", "its words", text)
        return FioRun(parse_output(text), ())

    monkeypatch.setattr(fio, "is_emulated", lambda: False)
    monkeypatch.setattr(fio, "start_guest", lambda *arguments: SimpleNamespace())
    monkeypatch.setattr(fio, "prepare", lambda *arguments: None)
    monkeypatch.setattr(fio, "run_in_guest", run)
    name = str(tmp_path / "out.json")
    with pytest.raises(FioFailed):
        fio.run_fio(["--disk", "blank=1M", "--repeat", "3", "--json", name])
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"out.1.json": FIO % 1, "out.2.json": FIO % 2}


@pytest.mark.parametrize("end", [PykvmError("the disk is full"), Stopped(2)])
@pytest.mark.parametrize(("samples", "rounds"), [(1, 0), (2, 1), (3, 1), (5, 2)])
def test_the_rounds_that_have_ended_are_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: BaseException,
    samples: int,
    rounds: int,
):
    left = iter(range(samples))

    def load(config: object) -> Sample:
        if next(left, None) is None:
            raise end
        return Sample(1.0, dict.fromkeys(CLASSIC, 1))

    monkeypatch.setattr(compare, "is_emulated", lambda: False)
    monkeypatch.setattr(compare, "_bare_load", lambda *arguments: load)
    file = tmp_path / "out.json"
    words = ["--guest", "bare", "--disk", "blank=64M", "--vary", "merge=off,sequential"]
    with ExitStack() as stack:
        if isinstance(end, PykvmError):
            stack.enter_context(pytest.raises(PykvmError, match="the disk is full"))
        assert compare.run_compare([*words, "--repeat", "3", "--json", str(file)]) == 130
    if rounds:
        configurations = json.loads(file.read_text())["configurations"]
        assert [len(one["samples"]) for one in configurations] == [rounds, rounds]
    else:
        assert not file.exists()
