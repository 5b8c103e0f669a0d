"""--trace of pykvm boot, and pykvm trace, with the bare guest."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from patience import patience

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.cli.main import main
from pykvm.cli.trace import parse_trace
from pykvm.errors import UsageError
from pykvm.trace import TraceFormat, TraceOptions

PYKVM = [sys.executable, "-m", "pykvm"]


@pytest.fixture
def boot(bare_kernel: Path, tmp_path: Path) -> list[str]:
    """The command that boots a guest which reads from one disk."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    driver.submit([BlockRequest.read(sector, 512) for sector in (0, 1, 7)])
    initrd = tmp_path / "script"
    initrd.write_bytes(script.encode())
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 16))
    return [
        *PYKVM,
        *("boot", "--kernel", str(bare_kernel), "--append", "script", "--initrd", str(initrd)),
        *("--disk", str(disk)),
    ]


def run(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, check=False, timeout=patience(), text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.kvm
def test_boot_then_show_then_plot(boot: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "a,b.jsonl"
    assert run([*boot, "--trace", f"{tmp_path}/a,,b.jsonl"])[0::2] == (0, "")
    status, out, err = run([*PYKVM, "trace", "show", str(trace)])
    assert (status, err) == (0, "")
    assert "2 operations, 1 of them for several requests (up to 2)" in out
    drawing = tmp_path / "out.svg"
    assert run([*PYKVM, "trace", "plot", str(trace), "-o", str(drawing)]) == (0, "", "")
    assert ElementTree.fromstring(drawing.read_text()).tag.endswith("svg")
    status, out, err = run([*PYKVM, "trace", "plot", str(trace)])
    assert (status, out, err) == (0, drawing.read_text(), "")


@pytest.mark.kvm
def test_boot_with_some_events_in_chromes_format(boot: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert run([*boot, "--trace", f"{trace},format=chrome,events=*.done"])[0] == 0
    spans = [one for one in json.loads(trace.read_text()) if one["ph"] == "X"]
    assert [span["args"]["sector"] for span in spans] == [0, 1, 7]
    status, _, err = run([*PYKVM, "trace", "show", str(trace)])
    assert status == 2
    assert err == f"pykvm: {trace}: this is not a trace in JSON Lines; trace with format=jsonl\n"


def test_options(tmp_path: Path) -> None:
    assert parse_trace("a") == TraceOptions(Path("a"))
    assert parse_trace("a,,b,events=*.stop,format=chrome") == TraceOptions(
        Path("a,b"), TraceFormat.CHROME, "*.stop"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a file"),
        ("a,fromat=jsonl", "no option 'fromat'"),
        ("a,format", "needs a value"),
        ("a,format=xml", "format=jsonl or format=chrome"),
        ("a,events=*.x", "no trace event"),
        ("a,events=*,events=*", "twice"),
    ],
)
def test_wrong_options(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_trace(text)


def test_help_lists_the_events(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--trace", "help"]) == 0
    assert "virtio_blk.merge" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], "FILE"),
        (["shwo", "x"], "shwo"),
        (["show", "no such file"], "no such file cannot be read"),
        (["show", "/"], "directory"),
        (["show", "{bad}"], "this is not a trace: line 1 is not an event"),
        (["plot", "{empty}"], "this is not a trace: it is empty"),
        (["show", "{empty}"], "this is not a trace: it is empty"),
        (["show", "/bin/true"], "this is not a trace: line 1"),
        (["show", "README.md"], "this is not a trace: line 1"),
        (["show", "{empty}", "-o", "x"], "only with plot"),
        (["plot", "{bad}", "-o", "{bad}"], "would overwrite"),
    ],
)
def test_mistakes(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    names = {"bad": str(tmp_path / "bad"), "empty": str(tmp_path / "empty")}
    Path(names["bad"]).write_text("hello\n")
    Path(names["empty"]).touch()
    assert main(["trace", *(word.format(**names) for word in arguments)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.kvm
def test_a_trace_that_cannot_be_written_costs_no_boot(boot: list[str]) -> None:
    status, _, err = run([*boot, "--trace", "/no/such/folder/x"])
    assert status == 2
    assert "the trace /no/such/folder/x: no such file" in err
