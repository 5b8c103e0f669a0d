"""docs/tutorial.md, followed by a reader: its files, its commands, and their output."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import linux_patience

pytestmark = [pytest.mark.kvm, pytest.mark.linux, pytest.mark.one_form, pytest.mark.timeout(400)]

PAGE = Path(__file__).parents[2] / "docs/tutorial.md"
MARK = "-- the next command --"


def without_times(text: str) -> str:
    """``text`` without the times, which differ in each run, and the blanks that align them."""
    text = re.sub(r"\d+(\.\d+ ?s|(\.\d+)? ms)( \(\d+:\d+:\d+\))?", "TIME", text)
    return re.sub(" +", " ", text).strip()


def test_every_command_prints_what_the_tutorial_says(tmp_path):
    text = PAGE.read_text()
    files = re.findall(r"to a file `([\w.]+)`.*?^```\w+\n(.*?)^```", text, re.S | re.M)
    assert [name for name, _ in files] == ["bad.toml", "first.py", "test_bad_sector.py"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    commands, expected = [], []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.S | re.M):
        for entry in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = entry.partition("\n")
            commands.append(command)
            expected.append(without_times(output))
    # The mark leaves $? as it was.
    script = "".join(f"{command}\n(s=$?; echo '{MARK}'; exit $s)\n" for command in commands)
    folder = os.path.dirname(sys.executable)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=linux_patience(390),
    )
    assert list(map(without_times, done.stdout.split(MARK)[:-1])) == expected
