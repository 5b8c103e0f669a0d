"""The programs in examples/, as a reader starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_kernel import own_kernel
from patience import linux_patience
from plugin_here import PLUGIN

pytestmark = [pytest.mark.kvm, pytest.mark.linux, pytest.mark.one_form]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(tmp_path):
    """A function that runs an example in an empty folder, and returns its output."""

    def run(name: str, *arguments: str, status: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, name if name[0] == "-" else EXAMPLES / name, *arguments],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            text=True,
            timeout=linux_patience(170),
        )
        assert done.returncode == status, done
        assert list(tmp_path.iterdir()) == []
        return done.stdout, done.stderr

    return run


def test_a_command_in_the_guest(example):
    command = "uname -s; echo complaint >&2; exit 3"
    assert example("run_command.py", command, status=3) == ("Linux\n", "complaint\n")


def test_a_mistake_is_one_sentence(example):
    out, err = example("run_command.py", "x" * 99_999, "x" * 99_999, status=2)
    assert out == ""
    assert re.fullmatch(r"the command is longer than [^\n]*\n", err)


def test_a_power_cut(example):
    out, err = example("power_cut.py")
    assert err == ""
    before, after = (line.partition(":")[2].strip() for line in out.splitlines())
    assert before == after == "[1, 2, 3]"


TESTS = ("test_bad_sector.py", "test_flaky_disk.py", "test_forks.py")
TESTS += ("test_full_disk.py", "test_live_resize.py", "test_power_cuts.py")


def test_tests_with_pytest(example, monkeypatch: pytest.MonkeyPatch):
    """In one session, so that their guest is prepared once. Fewer guests, for slow hosts."""
    monkeypatch.setenv("FORKS", "3")
    monkeypatch.setenv("WRITES", "8")
    assert passed(example, *TESTS) == "9 passed"


def test_a_boot_of_a_kernel_of_ones_own(example):
    assert passed(example, "test_boot.py", "--kernel", str(own_kernel())) == "2 passed"


def test_a_boot_of_the_bundled_guest(example):
    assert passed(example, "test_boot.py") == "1 passed, 1 skipped"


def passed(example, *arguments: str) -> str:
    """The result of pytest for files and options; files of this project are no part of it."""
    files = [str(EXAMPLES / word) if word.endswith(".py") else word for word in arguments]
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(EXAMPLES))
    out, err = example("-mpytest", *PLUGIN, *options, *files)
    assert err == ""
    return out.splitlines()[-1].split(" in ")[0]


def test_merging(example):
    out, err = example("watch_merging.py")
    assert err == ""
    off, sequential = out.split("merge=")[1:]
    assert off.splitlines() == [
        "off: the guest wrote 64 requests, 0 were merged into others",
        "    64 operations of 4096 bytes; requests in each: 1",
    ]
    match = re.match(r"sequential: the guest wrote 64 requests, (\d+) were merged", sequential)
    assert match
    # How many wait in the ring when the device looks at it depends on the host.
    operations = 64 - int(match[1])
    assert 2 <= operations < 64
    assert operations == sum(map(int, re.findall(r"(\d+) operations of", sequential)))


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    programs = [path.name for path in EXAMPLES.glob("*.py") if path.name != "conftest.py"]
    assert programs
    assert [name for name in programs if f'"{name}"' not in tested] == []
