"""pykvm accepts file names that are not UTF-8 or that hold control characters."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import patience

from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.machine import Machine, MachineConfig
from pykvm.monitor.commands import Target, execute
from pykvm.monitor.jobs import Jobs
from pykvm.monitor.protocol import Command, QmpError
from pykvm.monitor.qapi import block_info

NAME = b"d\xff\n\x1b[31m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with such a name, with a disk and a fault file in it."""
    made = tmp_path / os.fsdecode(NAME)
    made.mkdir()
    (made / "d.img").write_bytes(bytes(1 << 20))
    (made / "f.toml").write_text("seed = 1\n")
    return made


def pykvm(*arguments: Path | str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pykvm", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=patience(120),
    )


@pytest.mark.kvm
def test_a_run_with_such_names_everywhere(folder: Path, bare_kernel: Path):
    (folder / "k").write_bytes(bare_kernel.read_bytes())
    outputs = ("--stats", folder / "s", "--console-log", folder / "l", "--monitor", folder / "m")
    disk = f"{folder}/d.img,faults={folder}/f.toml"
    run = ("boot", "--kernel", folder / "k", "--append", "hello 3", "--disk", disk, "--json")
    done = pykvm(*run, *outputs, "--trace", folder / "t")
    assert done.returncode == 3
    trace = [json.loads(line) for line in (folder / "t").read_text().splitlines()]
    objects = [json.loads(done.stdout), json.loads((folder / "s").read_text())]
    for found in (trace[1], *(one["disks"][0] for one in objects)):
        assert base64.b64decode(found["path_base64"]) == os.fsencode(folder / "d.img")
        assert found["path"].encode().endswith(b"d\\xff\n\x1b[31m/d.img")
    shown = pykvm("trace", "show", folder / "t").stdout
    assert b"d\\xff\\n\\x1b[31m/d.img" in shown


@pytest.mark.kvm
def test_the_monitor_tells_of_such_a_disk(folder: Path, bare_kernel: Path):
    config = MachineConfig(kernel=bare_kernel, disks=[DiskConfig(folder / "d.img")])
    with Machine(config) as machine:
        inserted = block_info(machine.disks[0])["inserted"]
    name = base64.b64encode(os.fsencode(folder / "d.img")).decode()
    assert inserted["file_base64"] == name
    assert inserted["image"]["filename_base64"] == name
    json.dumps(inserted, ensure_ascii=False).encode()


@pytest.mark.kvm
def test_the_monitor_s_errors_are_utf8_too(folder: Path, bare_kernel: Path):
    disk = DiskConfig(folder / "d.img", readonly=True)
    resize = Command("block_resize", {"device": "virtio0", "size": 512})
    events: list[object] = []
    errors: list[BaseException] = []
    with Machine(MachineConfig(kernel=bare_kernel, disks=[disk])) as machine:
        machine.pause()
        machine.start()
        with pytest.raises(QmpError) as caught:
            execute(Target(machine, Jobs(machine, events.append, errors.append)), resize)
    assert not events + errors
    answer = json.loads(resize.failure(caught.value))
    assert "d\\xff\\n\\x1b[31m/d.img" in answer["error"]["desc"]
    json.dumps(answer, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["boot", "{}"],
        ["boot", "{}/none"],
        ["boot", "guest", "{}"],
        ["boot", "guest", "-m", "{}"],
        ["boot", "guest", "--stats", "{}/none/x"],
        ["boot", "guest", "--stats", "{}/d.img", "--disk", "{}/d.img"],
        ["boot", "guest", "--disk", "x,faults={}/none"],
        ["boot", "guest", "--disk", "x,serial={}"],
        ["boot", "guest", "--sandbox", "{}"],
        ["boot", "guest", "--{}"],
        ["bench", "--disk", "{}/none"],
        ["bench", "--workload", "{}"],
        ["trace", "{}"],
        ["trace", "show", "{}/none"],
        ["trace", "show", "{}/f.toml"],
        ["{}"],
    ],
)
def test_a_mistake_is_one_line_of_utf8_that_does_nothing(folder: Path, arguments: list[str]):
    done = pykvm(*(word.format(folder) for word in arguments))
    assert (done.returncode, done.stdout) == (2, b"")
    line = done.stderr.decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert "d\\xff\\n\\x1b[31m" in line


def test_the_doctor_shows_such_a_device(folder: Path):
    text = pykvm("doctor", "--device", folder / "d.img").stdout.decode()
    assert "\x1b" not in text
    assert "d\\xff\\n\\x1b[31m/d.img is not a KVM device" in text
    done = pykvm("doctor", "--json", "--device", folder / "d.img")
    json.dumps(json.loads(done.stdout), ensure_ascii=False).encode()
