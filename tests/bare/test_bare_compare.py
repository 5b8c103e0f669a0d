"""``pykvm bench compare`` with the bare-metal guest: the four merging policies side by side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import patience

pytestmark = pytest.mark.kvm


def compare(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pykvm", "bench", "compare", "--guest", "bare"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=patience(120)
    )


def test_the_policies_merge_as_they_say(tmp_path: Path):
    output, chart = tmp_path / "out.json", tmp_path / "chart.svg"
    files = ["--json", str(output), "--chart", str(chart)]
    done = compare("--disk", "blank=64M", "--repeat", "2", *files)
    assert done.returncode == 0, done.stderr
    found = {}
    for configuration in json.loads(output.read_text())["configurations"]:
        first, second = (sample["counters"] for sample in configuration["samples"])
        for name in ("rd_merged", "wr_merged", "rd_operations", "wr_operations"):
            assert first[name] == second[name]
        found[configuration["options"]] = first["rd_merged"], first["wr_merged"]
        assert f"{configuration['options']}: rd_bytes=" in done.stdout
    reads, writes = found["merge=sequential"]
    assert reads > 0
    assert writes > 0
    assert found["merge=off"] == (0, 0)
    assert found["merge=sorted-batch"][0] == 0
    assert found["merge=sorted-batch"][1] >= writes
    assert found["merge=sorted"][0] >= reads
    assert found["merge=sorted"][1] >= writes
    assert chart.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--disk", "blank=8M"], "the load needs 64"),
        (["--load", "mine.fio"], "has no load 'mine.fio'"),
        (["--set", "bs=8k"], "--set applies to jobs of fio"),
    ],
)
def test_refusals(arguments: list[str], words: str):
    done = compare(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
