"""``pykvm crash`` on a recording that a test has made."""

import json
import signal
import subprocess
import sys

import pytest
from crash_logs import SECTORS, base, sector_data
from patience import patience, until

from pykvm.cli.main import main
from pykvm.crash.dm_log import parsed
from pykvm.devices.virtio_blk import log_file
from pykvm.devices.virtio_blk.observe.write_log import Entry, WriteKind, WriteLog

LOST = 'cmp -s -n 1 -i 2048 "$IMAGE" /dev/zero || { echo the write is lost; false; }'
"""Fails where sector 4 has its old content, which is not zeros."""
TORN = ("--no-fsck", "--tear", "512")


@pytest.fixture
def recording(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    entries = [
        Entry(WriteKind.ZEROES, 0, 1, sector=4, sectors=1),
        Entry(WriteKind.WRITE, 2, 3, sector=5, sectors=2, data=sector_data(1) * 2),
        Entry(WriteKind.MARK, 4, 4, 4, label="done"),
    ]
    log_file.save(WriteLog(SECTORS, entries), folder / "log")
    (folder / "base").write_bytes(b"".join(map(base, range(SECTORS))))
    return folder


def run(capfd, *arguments: object) -> tuple[int, str, str]:
    status = main(["crash", *map(str, arguments)])
    return status, *capfd.readouterr()


def test_the_states_are_explored_reduced_replayed_and_exported(recording, tmp_path, capfd):
    status, output, _ = run(
        capfd, "explore", recording, *TORN, "--check", LOST, "--cuts", "mark", "--json"
    )
    found = json.loads(output)
    assert (status, found["checked"], found["legal"], found["complete"]) == (1, 8, 8, True)
    assert len(found["failures"]) == 4
    assert found["failures"][0]["reason"].endswith("ended with status 1: the write is lost")
    name = found["failures"][0]["id"]
    status, output, _ = run(capfd, "minimise", recording, name, "--no-fsck", "--check", LOST)
    smallest, cut, lost, _ = output.splitlines()
    assert status == 1
    assert cut == "the power is cut after event 1 of 5"
    assert lost == "zeroes 0 (sector 4) is lost"
    image = tmp_path / "image"
    status, output, _ = run(
        capfd, "replay", recording, smallest, "--no-fsck", "--check", LOST, "--image", image
    )
    assert status == 1
    assert output.splitlines()[:2] == [cut, lost]
    assert image.read_bytes() == (recording / "base").read_bytes()
    assert run(capfd, "export", recording, tmp_path / "dm")[0] == 0
    assert len(parsed((tmp_path / "dm").read_bytes())) == 4


def test_a_summary_names_some_failures_and_the_next_step(recording, capfd):
    status, output, _ = run(capfd, "explore", recording, *TORN, "--check", "false")
    lines = output.splitlines()
    assert status == 1
    assert lines[0].startswith("8 states checked in")
    assert lines[0].endswith("8 failed (complete: 8 legal states)")
    assert "and 3 more, which --json lists" in lines
    assert lines[-1].startswith(f"the smallest: pykvm crash minimise {recording}")


def test_states_that_pass(recording, capfd):
    status, output, _ = run(capfd, "explore", recording, "--no-fsck", "--check", "true")
    assert (status, len(output.splitlines())) == (0, 1)


def test_the_check_knows_the_marks(recording, capfd):
    options = ("--no-fsck", "--check", '[ "$MARKS" = done ]', "--cuts", "mark")
    assert run(capfd, "explore", recording, *options)[0] == 0


def test_shards_check_each_state_once(recording, capfd):
    found = []
    for shard in ("1/3", "2/3", "3/3"):
        options = (*TORN, "--check", "false", "--json", "--shard", shard)
        _, output, _ = run(capfd, "explore", recording, *options)
        found += [one["id"] for one in json.loads(output)["failures"]]
    assert len(found) == len(set(found)) == 8


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["explore", "{}", "--shard", "0/2"], "--shard cannot be '0/2'"),
        (["explore", "{}", "--shard", "3/2"], "--shard cannot be '3/2'"),
        (["explore", "{}", "--shard", "x"], "--shard cannot be 'x'"),
        (["explore", "missing"], "cannot be read: no such file"),
        (["explore", "{}", "--states", "0"], "--states cannot be '0'"),
        (["explore", "{}", "--seed", "x"], "--seed cannot be 'x'"),
        (["explore", "{}", "--no-fsck"], "nothing to check"),
        (["explore", "{}", "--no-fsck", "--check", "no-such-tool"], "cannot be run by the shell"),
        (["explore", "{}", "--model", "ata"], "invalid choice"),
        (["replay", "{}", "1-2"], "'1-2' is not the id of a state"),
        (["minimise", "{}"], "required: ID"),
        (["export", "{}", "{}"], "cannot be written: file exists"),
        (["record", "{}", "--run", "true"], "exists; give a new folder"),
        (["record", "new", "--run", "true", "--disk", "blank=x"], "blank"),
        (["erase", "{}"], "invalid choice"),
    ],
)
def test_bad_input_is_one_sentence(recording, capfd, arguments, problem):
    status, output, message = run(capfd, *(one.format(recording) for one in arguments))
    assert (status, output) == (2, "")
    assert problem in message
    assert message.count("\n") == 1


def test_a_signal_ends_an_exploration(recording):
    code = "import sys; from pykvm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    check = f"touch {recording}/begun; sleep 0.2"
    arguments = ("crash", "explore", recording, *TORN, "--check", check)
    with subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)]) as program:
        until((recording / "begun").exists)
        program.send_signal(signal.SIGTERM)
        assert program.wait(patience()) == 128 + signal.SIGTERM
