"""Wrong input gives status 2 or 77, one sentence with the next step, and no traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import patience

from pykvm.cli.main import main


def fails(capfd, arguments: list[str], status: int, *words: str) -> None:
    """``pykvm arguments`` must end with ``status`` and one line on stderr that has ``words``."""
    assert main(arguments) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bot"], ["no command 'bot'", "did you mean 'boot'"]),
        (["boot"], ["nothing to boot", "--kernel"]),
        (["boot", "guest", "--dsk", "x"], ["--dsk", "did you mean --disk"]),
        (["boot", "guest", "--zzz"], ["unknown option '--zzz'", "--help"]),
        (["boot", "guest", "more"], ["unknown argument 'more'"]),
        (["boot", "--initrd", "x"], ["--initrd needs a kernel", "--kernel"]),
        (["boot", "guest", "--disk"], ["--disk", "expected one argument"]),
        (["boot", "guest", "--append", "-x"], ["--append", "--OPTION=VALUE"]),
        (["boot", "guest", "-m", "lots"], ["'lots' is not a size"]),
        (["boot", "guest", "--cpus", "0"], ["not a number of CPUs"]),
        (["boot", "guest", "--cpu-affinity", ""], ["'' is not a list of CPUs"]),
        (["boot", "guest", "--timeout", "-1"], ["not a time"]),
        # What a script's variable leaves that is not set.
        (["boot", ""], ["the guest's name is empty"]),
        (["boot", "guest", "-m", ""], ["'' is not a size"]),
        (["boot", "guest", "--timeout", ""], ["'' is not a time"]),
        (["boot", "guest", "--trace", ""], ["--trace needs a file"]),
        (["doctor", "--device", ""], ["--device: the path is empty"]),
        (["bench", "--size", ""], ["'' is not a size"]),
        (["bench", "--depth", ""], ["--depth cannot be ''"]),
        (["bench", "--engine", ""], ["engine cannot be ''"]),
        # - is a stream for some programs, and the name of a file for others.
        (["boot", "guest", "--console-log", "-"], ["/dev/stdout", "./-"]),
        (["boot", "guest", "--monitor", "-"], ["./-"]),
        (["bench", "--chart", "-"], ["/dev/stdout", "./-"]),
        (["trace", "plot", "README.md", "-o", "-"], ["/dev/stdout", "./-"]),
        (["trace", "show", "-"], ["/dev/stdin"]),
        (["boot", "guest", "--disk", "x,"], ["no option ''", "write a comma in a path twice"]),
        (["bench", "--options", ",readonly=on"], ["begins with a comma"]),
        (["bench", "--size", "999999T"], ["would need", "are free"]),
        (["bench", "--runs", "9999999999"], ["write a whole number from 1 to 999999999"]),
        (["boot", "guest", "--debug"], ["pykvm --debug boot"]),
        (["guest"], ["try 'pykvm boot guest'"]),
        (["boot", "--kernel", "x", "--exec", "ls"], ["--exec needs a guest"]),
        (["boot", "guest", "--stats", "/no/such/folder/x"], ["--stats", ": no such file"]),
        *(
            (["boot", "guest", option, ""], [f"{option}: the path is empty"])
            for option in ("--kernel", "--initrd", "--console-log", "--stats", "--monitor")
        ),
        *(
            (["bench", option, ""], [f"{option}: the path is empty"])
            for option in ("--disk", "--chart")
        ),
        (["boot", "guest", "--console-log", "/"], ["--console-log", ": is a directory"]),
        (["doctor", "--flavor"], ["--flavor", "--flavour"]),
    ],
)
def test_usage(capfd, arguments, words):
    fails(capfd, arguments, 2, *words)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["boot", "nosuch"], ["no guest is called 'nosuch'"]),
        (["boot", "./"], ["no bundle.json"]),
        (["boot", "--kernel", "/no/such/kernel"], ["/no/such/kernel", "--kernel"]),
        (["boot", "--kernel", "/"], ["directory", "--kernel"]),
        (["boot", "--kernel", "/etc/passwd"], ["/etc/passwd", "--kernel"]),
        (["boot", "--kernel", "/bin/ls"], ["program", "--kernel"]),
        (["boot", "--kernel", "x", "-m", "512K"], ["memory"]),
        (["boot", "--kernel", "x", "-m", "999999999T"], ["memory", "-m"]),
        (["boot", "--kernel", "x", "-m", "64M,huge=on"], ["--memory", "'huge'", "thp="]),
        (
            ["boot", "--kernel", "x", "-m", "64M,shared"],
            ["'shared' needs a value", "shared=on"],
        ),
        (["boot", "--kernel", "x", "-m", "64M,thp=on,thp=off"], ["'thp' is given twice"]),
        (["boot", "--kernel", "x", "-m", "64M,thp=1"], ["thp=1", "neither on nor off"]),
        (["boot", "--kernel", "x", "--cpus", "99999"], ["99999 CPUs"]),
        (["boot", "--kernel", "x", "--disk", "/no/such/disk"], ["/no/such/disk"]),
        (["boot", "--kernel", "x", "--cpus", "255"], ["255 CPUs"]),
        (["boot", "--kernel", "x", "--disk", "/"], ["directory"]),
        (["boot", "--kernel", "x", *["--disk", "x"] * 31], ["31 disks", "at most 30"]),
    ],
)
def test_wrong_files_and_sizes(capfd, arguments, words):
    fails(capfd, arguments, 2, *words)


@pytest.mark.kvm
@pytest.mark.parametrize("option", ["--console-log", "--stats", "--trace"])
@pytest.mark.parametrize("read", ["--disk", "--kernel", "--initrd"])
def test_no_output_overwrites_an_input(capfd, tmp_path, option, read):
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    (tmp_path / "link").symlink_to(image)
    arguments = ["boot", "guest", read, str(image), option, str(tmp_path / "link")]
    fails(capfd, arguments, 2, f"{option} {tmp_path}/link would overwrite {image}")
    assert image.read_bytes() == bytes(512)


def test_a_guest_that_is_incomplete(capfd, tmp_path):
    (tmp_path / "bundle.json").write_text(
        '{"format": 1, "name": "g", "flavours": {"native": {"kernel": "vmlinux"}}}'
    )
    words = ["bundle.json", "'vmlinux'", "does not exist", "build the guest again"]
    fails(capfd, ["boot", str(tmp_path)], 2, *words)


@pytest.mark.kvm
def test_disk_in_use(capfd, tmp_path, bare_kernel):
    """A second writer is refused, and the message names the disk's user."""
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(1 << 20))
    command = [sys.executable, "-m", "pykvm", "boot", "--kernel", str(bare_kernel)]
    command += ["--append", "spin", "--disk", str(disk), "--timeout", str(patience())]
    holder = subprocess.Popen([*command, "--timings"], stdin=subprocess.DEVNULL)
    try:
        wait_for_lock(disk)
        arguments = ["boot", "--kernel", str(bare_kernel), "--disk", str(disk)]
        fails(capfd, arguments, 2, str(disk), str(holder.pid))
    finally:
        holder.terminate()
        assert holder.wait(patience()) == 143


def wait_for_lock(disk: Path) -> None:
    """Return once some process holds a lock on ``disk``."""
    inode = f":{disk.stat().st_ino} "
    for _ in range(2000):
        if inode in Path("/proc/locks").read_text():
            return
        os.sched_yield()
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError(f"nobody locked {disk}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "x"), ["/dev/kvm"]),
        (PermissionError(13, "x"), ["/dev/kvm", "kvm"]),
        (OSError(19, "x"), ["/dev/kvm", "virtualization"]),
    ],
)
def test_no_kvm(capfd, monkeypatch, error, words):
    """A host that cannot run a VM is status 77, with advice for each reason."""
    real = os.open

    def broken(path, *rest, **more):
        if path == "/dev/kvm":
            raise error
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", broken)
    fails(capfd, ["boot", "--kernel", "x"], 77, *words)


def test_help_and_version(capfd):
    for arguments in (["--help"], ["--version"]):
        assert main(arguments) == 0
    for command in ("boot", "doctor"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
    out, err = capfd.readouterr()
    assert "--console-log" in out
    assert err == ""


def test_a_missing_package_is_named(capfd, monkeypatch):
    """A checkout's own Python need not have cffi; that is no bug."""

    def missing(*argv: object) -> int:
        raise ModuleNotFoundError("No module named '_cffi_backend'", name="_cffi_backend")

    monkeypatch.setattr("pykvm.cli.main._dispatch", missing)
    fails(capfd, ["boot"], 125, "_cffi_backend", "activate")


def test_an_internal_error_is_said_to_be_one(capfd, monkeypatch):
    def bug(*argv: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("pykvm.cli.main._dispatch", bug)
    fails(capfd, ["boot"], 125, "internal error", "bug in pykvm")


@pytest.mark.parametrize(
    ("error", "word"), [(OSError(errno.EMFILE, "x"), "ulimit"), (MemoryError(), "less with -m")]
)
def test_a_resource_that_the_host_has_run_out_of_is_not_a_bug(capfd, monkeypatch, error, word):
    def exhausted(*argv: object) -> int:
        raise error

    monkeypatch.setattr("pykvm.cli.main._dispatch", exhausted)
    fails(capfd, ["boot"], 125, word)


def test_debug_shows_the_traceback_and_keeps_the_status(capfd):
    assert main(["--debug", "boot", "--zzz"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("pykvm: unknown option")
