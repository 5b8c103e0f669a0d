"""Disks on the command line: their options, and their statistics. With the bare guest."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import patience

from pykvm.bare import BlockDriver, BlockRequest, Script

PYKVM = [sys.executable, "-m", "pykvm"]
LINE = (
    r"{}: rd_bytes=0 wr_bytes=0 rd_operations=0 wr_operations=0 flush_operations=0 "
    r"wr_total_time_ns=0 rd_total_time_ns=0 flush_total_time_ns=0 rd_merged=0 wr_merged=0\n"
)


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.img", "b.img")]
    for path in paths:
        path.write_bytes(bytes(4096))
    return paths


def boot(
    kernel: Path, *options: str, words: str = "hello 3", stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess:
    command = [*PYKVM, "boot", "--kernel", str(kernel), "--append", words, *options]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        check=False,
        timeout=patience(),
    )


def test_help_lists_the_keys_and_boots_nothing(tmp_path):
    done = subprocess.run(
        [*PYKVM, "boot", "--disk", "help"], capture_output=True, check=False, timeout=patience()
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"  cache=writeback|" in done.stdout


@pytest.mark.kvm
def test_a_disk_with_every_option(bare_kernel, disks):
    options = "serial=S,cache=unsafe,merge=sorted,merge-max=8,seg-max=4,size-max=4K"
    done = boot(bare_kernel, "--disk", f"{disks[0]},{options},rerror=stop,werror=ignore")
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.kvm
def test_a_blank_disk_has_the_options_of_any_disk(bare_kernel, disks, tmp_path):
    stats = tmp_path / "stats"
    done = boot(bare_kernel, "--disk", "blank=1M,serial=S", "--stats", str(stats))
    assert (done.returncode, done.stderr) == (3, b"")
    (disk,) = json.loads(stats.read_text())["disks"]
    assert (disk["path"], disk["serial"]) == ("blank=1048576", "S")


def test_a_blank_disk_that_cannot_be_is_a_usage_error(tmp_path):
    done = boot(tmp_path / "no kernel", "--disk", "blank=1000")
    assert done.returncode == 2
    assert b"a blank disk cannot have 1000 bytes; give a multiple of 512" in done.stderr


def test_a_bad_value_is_a_usage_error(tmp_path):
    done = boot(tmp_path / "no kernel", "--disk", "no.img,merge=always")
    assert done.returncode == 2
    hint = b"use sequential, sorted, sorted-batch or off"
    assert done.stderr == b"pykvm: merge cannot be 'always'; " + hint + b"\n"


@pytest.mark.kvm
def test_an_image_that_looks_like_a_different_format_needs_format_raw(bare_kernel, disks):
    disks[0].write_bytes(b"QFI\xfb\0\0\0\3".ljust(4096, b"\0"))
    done = boot(bare_kernel, "--disk", f"{disks[0]}")
    assert done.returncode == 2
    assert f"{disks[0]} begins like a qcow2 image".encode() in done.stderr
    assert b"format=raw" in done.stderr
    done = boot(bare_kernel, "--disk", f"{disks[0]},format=raw")
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.kvm
def test_a_partial_last_sector_is_readable_and_reported(bare_kernel, disks):
    disks[0].write_bytes(bytes(1000))
    for mode in ("readonly=on", "snapshot=on"):
        done = boot(bare_kernel, "--disk", f"{disks[0]},{mode}")
        assert done.returncode == 3
        assert b"has 1000 bytes, which is not a multiple of 512: the guest sees 24" in done.stderr


@pytest.mark.kvm
def test_statistics_on_standard_error_are_a_line_for_each_disk(bare_kernel, disks):
    given = [word for path in disks for word in ("--disk", str(path))]
    done = boot(bare_kernel, *given, "--stats", "-")
    assert done.returncode == 3
    assert re.fullmatch(LINE.format("virtio0") + LINE.format("virtio1"), done.stderr.decode())
    # No file of that name.
    assert not Path("-").exists()


@pytest.mark.kvm
def test_statistics_in_a_file_have_every_field(bare_kernel, disks, tmp_path):
    stats = tmp_path / "stats"
    boot(bare_kernel, "--disk", f"{disks[1]},serial=S,queues=2", "--stats", str(stats))
    (disk,) = json.loads(stats.read_text())["disks"]
    assert (disk["device"], disk["path"], disk["serial"]) == ("virtio0", str(disks[1]), "S")
    assert {"rd_merged", "failed_flush_operations", "invalid_other_operations"} <= disk.keys()
    assert disk["idle_time_ns"] > 0
    assert [queue["rd_merged"] for queue in disk["queues"]] == [0, 0]


@pytest.mark.kvm
def test_statistics_that_cannot_be_printed_are_an_error(bare_kernel, disks):
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = boot(bare_kernel, "--disk", str(disks[0]), "--stats", "-", stderr=full)
    finally:
        os.close(full)
    assert done.returncode == 125


@pytest.mark.kvm
@pytest.mark.parametrize(("error", "policy"), [("ENOSPC", ""), ("EIO", ",werror=stop")])
def test_a_guest_that_nobody_could_let_go_on_is_not_stopped(
    bare_kernel, disks, tmp_path, error, policy
):
    faults, initrd, stats = (tmp_path / name for name in ("faults.toml", "script", "stats"))
    faults.write_text(f'[[fault]]\noperation = "write"\nerrno = "{error}"\n')
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    driver.submit([BlockRequest.write(0, b"x" * 512)])
    script.exit(0)
    initrd.write_bytes(script.encode())
    options = ("--initrd", str(initrd), "--stats", str(stats))
    disk = f"{disks[0]},faults={faults}{policy}"
    done = boot(bare_kernel, *options, "--disk", disk, words="script")
    assert done.returncode == 125
    assert done.stderr.startswith(
        b"pykvm: virtio0 (" + os.fsencode(disks[0]) + b"): a write of 512"
    )
    assert f"({error}); the run ends here: ".encode() in done.stderr
    # The end is an orderly one.
    assert json.loads(stats.read_text())["disks"][0]["device"] == "virtio0"
