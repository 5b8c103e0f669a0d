"""Writing a file destroys no other file: the rules of pykvm/outputs.py."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.errors import UsageError
from pykvm.outputs import Outputs


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file that a run reads."""
    path = tmp_path / "image"
    path.write_bytes(b"precious")
    return path


def refused(outputs: Outputs, path: Path | str, *words: str, alone: bool = False) -> None:
    """``path`` is refused with one sentence that has ``words``."""
    with pytest.raises(UsageError) as caught:
        outputs.open(path, "--log", alone=alone)
    for word in ("--log", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["itself", "hard link", "symlink", "descriptor"])
def test_an_input_is_refused_as_an_output_by_any_name(image: Path, kind: str) -> None:
    other: Path | str = image.with_name("other")
    with image.open("rb") as held:
        if kind == "itself":
            other = image
        elif kind == "hard link":
            os.link(image, other)
        elif kind == "symlink":
            os.symlink(image, other)
        else:
            other = f"/proc/self/fd/{held.fileno()}"
        with Outputs([image]) as outputs:
            refused(outputs, other, "would overwrite", str(image))
            with pytest.raises(UsageError, match="would overwrite"):
                outputs.check(other, "--trace")
    assert image.read_bytes() == b"precious"


def test_a_file_cannot_be_two_outputs(tmp_path: Path) -> None:
    with Outputs([]) as outputs:
        outputs.open(tmp_path / "new", "--stats").begin()
        refused(outputs, tmp_path / "new", "--stats", "are the same file")
        with pytest.raises(UsageError, match="are the same file"):
            outputs.check(tmp_path / "new", "--trace")


def test_an_output_keeps_what_it_holds_until_it_begins(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("of the last run")
    with Outputs([]) as outputs:
        output = outputs.open(old, "--log")
        assert old.read_text() == "of the last run"
        output.begin()
        os.write(output.fd, b"x")
    assert old.read_text() == "x"


def test_a_run_that_fails_early_changes_nothing(tmp_path: Path, image: Path) -> None:
    old = tmp_path / "old"
    old.write_text("of the last run")
    with Outputs([image]) as outputs:
        outputs.open(old, "--stats")
        outputs.open(tmp_path / "new", "--log")
        refused(outputs, image, "overwrite")
    assert old.read_text() == "of the last run"
    assert not (tmp_path / "new").exists()


def test_data_of_a_different_program_stays(tmp_path: Path) -> None:
    """Two runs have the same output, and the first that fails must not remove it."""
    new = tmp_path / "new"
    with Outputs([]) as outputs:
        outputs.open(new, "--stats")
        new.write_text("of another run")
    assert new.read_text() == "of another run"


def test_a_locked_file_is_refused(image: Path) -> None:
    """The user of a disk image holds shared locks on bytes that need not exist."""
    with image.open("rb") as held:
        flock = b"".join(
            number.to_bytes(size, sys.byteorder)
            for number, size in ((fcntl.F_RDLCK, 2), (0, 6), (201, 8), (1, 8), (0, 8))
        )
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, flock)
        with Outputs([]) as outputs:
            refused(outputs, image, "in use")
    assert image.read_bytes() == b"precious"


def test_a_pipe_without_a_reader_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Outputs([]) as outputs:
        refused(outputs, fifo, "no reader")
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        output = outputs.open(fifo, "--log")
        output.begin()
        os.write(output.fd, b"read")
        assert os.read(reader, 9) == b"read"
        os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_an_unusable_path_is_refused_by_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, Outputs([]) as outputs:
        bound.bind(str(tmp_path / "socket"))
        refused(outputs, tmp_path / "socket", "is a socket")
        refused(outputs, tmp_path, "is a directory")
        refused(outputs, tmp_path / "no" / "folder", "no such file")
        refused(outputs, "a\0b", "null")
        refused(outputs, "/dev/null", "regular file", alone=True)


def test_a_block_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def disk(path: object) -> os.stat_result:
        found = real("/dev/null")
        mode = stat.S_IFBLK | 0o660
        return os.stat_result((mode, *found[1:]), {"st_rdev": found.st_rdev})

    monkeypatch.setattr(os, "stat", disk)
    with Outputs([]) as outputs:
        refused(outputs, "/dev/null", "block device")


def test_devices_that_keep_no_data_may_be_several_outputs() -> None:
    with Outputs(["/dev/null"]) as outputs:
        for option in ("--stats", "--log"):
            output = outputs.open("/dev/null", option)
            output.begin()
            os.write(output.fd, b"gone")


SCRIPT = """
import os, sys
from pykvm.errors import UsageError
from pykvm.outputs import Outputs
inputs = [0] if sys.argv[1] == "0" else sys.argv[1:2]
try:
    with Outputs(inputs) as outputs:
        outputs.check_streams()
        for path in sys.argv[2:]:
            output = outputs.open(path, "--log")
            output.begin()
            os.write(1, b"one ")
            os.write(output.fd, b"two ")
            os.write(1, b"three ")
except UsageError as error:
    sys.exit(str(error))
"""


def in_shell(redirections: str, *arguments: str) -> str:
    """Standard error of SCRIPT under a shell."""
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirections}', "sh", sys.executable, "-c", SCRIPT, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stderr


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "r.log"])
def test_an_output_is_appended_to_the_file_behind_a_standard_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.log").write_text("zero ")
    assert in_shell(">>r.log", "", name) == ""
    assert Path("r.log").read_text() == "zero one two three "


def test_an_output_is_written_to_the_pipe_behind_a_standard_stream() -> None:
    assert in_shell("2>&1 | cat >&2", "", "/dev/stdout") == "one two three "


@pytest.mark.parametrize("redirection", [">>image", "2>>image"])
def test_a_standard_stream_must_not_go_to_an_input(image: Path, redirection: str) -> None:
    arguments = [f"cd {image.parent}; exec 3>&2; $0 -c '{SCRIPT_SAYS}' image {redirection}"]
    done = subprocess.run(
        ["sh", "-c", *arguments, sys.executable], check=False, capture_output=True, text=True
    )
    assert "would overwrite image" in done.stderr
    assert image.read_bytes() == b"precious"


SCRIPT_SAYS = """
import os, sys
from pykvm.errors import UsageError
from pykvm.outputs import Outputs
try:
    Outputs(sys.argv[1:]).check_streams()
except UsageError as error:
    os.write(3, str(error).encode())
"""


def test_the_file_behind_standard_input_is_an_input(image: Path) -> None:
    assert "standard input" in in_shell(f"<{image}", "0", str(image))
    assert image.read_bytes() == b"precious"
