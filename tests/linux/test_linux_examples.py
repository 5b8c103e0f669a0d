"""The programs in examples/, as a reader starts them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from own_kernel import own_kernel
from patience import linux_patience

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

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


def test_a_bad_sector(example):
    out, err = example("bad_sector.py")
    assert err == ""
    assert out.splitlines() == [
        *("page 272: read", "page 273: read", "page 274: read", ""),
        *("page 272: read", "page 273: error", "page 274: read", ""),
        "the guest's kernel: I/O error, dev vda, sector 2184",
        "the disk: 1 failed read",
    ]


def test_a_power_cut(example):
    out, err = example("power_cut.py")
    assert err == ""
    before, after = (line.partition(":")[2].strip() for line in out.splitlines())
    assert before == after == "[1, 2, 3]"


def test_a_kernel_of_ones_own(example):
    out, err = example("own_kernel.py", str(own_kernel()), status=126)
    assert err == ""
    version, end = out.splitlines()
    assert version.startswith("it is Linux 6.")
    assert end.startswith("it ended: PANIC Kernel panic - not syncing: VFS: Unable to mount root")


def test_forks(example):
    out, err = example("forks.py")
    assert err == ""
    *lines, _ = out.splitlines()
    assert lines == [
        *("append: ['1', '2']", "replace: ['3']", "remove: []"),
        "panic: PANIC, Kernel panic - not syncing: sysrq triggered crash",
        "reset: ['1']",
    ]


def test_tests_with_pytest(example):
    options = ("-q", "-p", "no:cacheprovider", EXAMPLES / "test_pytest.py")
    out, err = example("-mpytest", *options)
    assert (out.splitlines()[-1].split(" in ")[0], err) == ("4 passed", "")


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
    programs = [path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"]
    assert programs
    assert [name for name in programs if f'"{name}"' not in tested] == []
