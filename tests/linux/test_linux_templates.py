"""``boot --exec`` starts from a template: made once, never trusted, and never in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import linux_patience
from sandbox_here import sandbox_problem

import pykvm
from pykvm.machine.command import BootFailed
from pykvm.templates.start import machine, template
from pykvm.templates.store import TemplateError

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

CONFIG = pykvm.MachineConfig(guest="guest", agent=True, console="none")
PANICS = "init=/none rdinit=/none"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which the host is known."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("PYKVM_CACHE", str(folder))
    return folder


@pytest.fixture
def filled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The template of CONFIG, in a cache of its own."""
    monkeypatch.undo()
    made = template(CONFIG, timeout=linux_patience())
    (cache / "templates").mkdir(mode=0o700)
    shutil.copytree(made, cache / "templates" / made.name)
    monkeypatch.setenv("PYKVM_CACHE", str(cache))
    return cache / "templates" / made.name


def steps(done: "subprocess.CompletedProcess[bytes]") -> set[str]:
    """The steps that ``--json`` lists."""
    return set(json.loads(done.stdout)["timings"])


def test_a_guest_boots_once(boot, filled: Path) -> None:
    made = {path: path.stat().st_mtime_ns for path in filled.iterdir()}
    done = boot("--json", "--exec", "echo hi")
    assert json.loads(done.stdout)["stdout"] == {"text": "hi\n"}
    assert "kernel loaded" not in steps(done)
    assert done.stderr == b""
    assert made == {path: path.stat().st_mtime_ns for path in filled.iterdir()}
    assert [path.name for path in filled.parent.iterdir()] == [filled.name]


@pytest.mark.parametrize(
    "options", [["--cold"], ["--console-log", "log"], ["-m", "64M,thp=on"], ["-m", "64M,shared=on"]]
)
def test_some_options_ask_for_a_boot(
    boot, cache: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = boot("--json", *options, "--exec", "true")
    assert "kernel loaded" in steps(done)
    assert b"template" not in done.stderr
    assert not (cache / "templates").exists()


def test_disks_may_differ(boot, filled: Path, tmp_path: Path) -> None:
    for size in (1 << 20, 3 << 20):
        image = tmp_path / "d.img"
        image.write_bytes(bytes(size))
        done = boot("--disk", str(image), "--exec", "cat /sys/block/vda/size; echo x > /dev/vda")
        assert done.stdout == b"%d\n" % (size // 512)
        assert image.read_bytes()[:2] == b"x\n"


def test_a_mistake_shows_before_the_first_boot(boot, cache: Path, tmp_path: Path) -> None:
    done = boot("--disk", str(tmp_path / "none"), "--exec", "true", check=2)
    assert b"no such file" in done.stderr
    assert os.listdir(cache / "templates") == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ram", lambda data: data[:-4096]),
        ("state.json", lambda data: data[:-100]),
        ("manifest.json", lambda data: data.replace(b'"format": ', b'"format": 9')),
        ("manifest.json", lambda data: b""),
    ],
)
def test_a_damaged_template_is_made_anew(boot, filled: Path, name: str, change) -> None:
    file = filled / name
    file.write_bytes(change(file.read_bytes()))
    damaged = file.stat().st_ino
    assert boot("--exec", "echo hi").stdout == b"hi\n"
    assert file.stat().st_ino != damaged
    assert "kernel loaded" not in steps(boot("--json", "--exec", "echo hi"))


def test_a_template_of_a_different_host_is_not_used(filled: Path) -> None:
    manifest = json.loads((filled / "manifest.json").read_text())
    manifest["cpuid"]["hex"] = "00" * 32
    (filled / "manifest.json").write_text(json.dumps(manifest))
    with machine(CONFIG, timeout=linux_patience()) as made:
        assert made.restored
        assert pykvm.run_command(made, "exit 3", timeout=linux_patience()).status == 3
    assert json.loads((filled / "manifest.json").read_text())["cpuid"]["hex"] != "00" * 32


def test_a_running_guest_outlives_its_template(filled: Path) -> None:
    with machine(CONFIG) as made:
        assert made.restored
        shutil.rmtree(filled)
        result = pykvm.run_command(made, "md5sum /bin/* > /dev/null", timeout=linux_patience())
        assert result.status == 0


@pytest.mark.parametrize("place", ["no home", "a file", "too small", "read-only"])
def test_without_a_place_the_guest_boots(
    boot, cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    reason = b"booting without a template: "
    if place == "no home":
        monkeypatch.delenv("PYKVM_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "")
        reason += b"this user has no home to keep one; set PYKVM_CACHE to a folder"
    elif place == "a file":
        (cache / "templates").touch()
        reason += b"none can be kept in %s/templates: file exists; set" % os.fsencode(cache)
    elif place == "too small":
        monkeypatch.setenv("PYKVM_TEMPLATE_LIMIT", "1M")
        reason += b"it is larger than the limit, 1 MiB; raise PYKVM_TEMPLATE_LIMIT"
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        cache.chmod(0o500)
        reason += b"none can be kept in %s/templates: permission denied" % os.fsencode(cache)
    done = boot("--exec", "echo hi")
    assert done.stdout == b"hi\n"
    assert reason in done.stderr
    assert done.stderr.count(b"\n") == 1
    if place == "too small":
        assert boot("--exec", "echo hi").stderr == b""


def test_a_guest_that_does_not_boot_alone_boots_as_before(boot, cache: Path) -> None:
    first = boot("--append", PANICS, "--exec", "true", check=126)
    assert b"booting without a template: alone, without disks, the guest did not" in first.stderr
    assert b"Kernel panic" in first.stderr
    second = boot("--append", PANICS, "--exec", "true", check=126)
    assert b"template" not in second.stderr
    assert [name[32:] for name in os.listdir(cache / "templates")] == [".failed"]


@pytest.mark.skipif(bool(sandbox_problem()), reason=sandbox_problem())
@pytest.mark.parametrize("kind", ["template", "snapshot"])
def test_the_first_boot_is_confined_too(cache: Path, kind: str) -> None:
    options = ["--snapshot", str(cache / "booted")] if kind == "snapshot" else []
    with first_boot(cache, "--sandbox=on", *options) as process:
        deadline = time.monotonic() + linux_patience()
        while not any(is_confined(child) for child in children(process.pid)):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        assert not is_confined(process.pid)
        assert process.communicate(timeout=linux_patience())[0] == b"hi\n"
    assert process.returncode == 0
    if kind == "template":
        assert [len(name) for name in os.listdir(cache / "templates")] == [32]
    else:
        assert not list(cache.glob(".pykvm-snapshot-*"))


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def is_confined(pid: int) -> bool:
    """The kernel says that a filter of system calls is in force."""
    try:
        return "Seccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def first_boot(cache: Path, *options: str) -> "subprocess.Popen[bytes]":
    """A process that boots the guest for its template, or for its snapshot in ``cache``, now."""
    command = [sys.executable, "-m", "pykvm", "boot", "guest", *options, "--exec", "echo hi"]
    command += ["--timeout", str(linux_patience())]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + linux_patience()
    while not [*cache.glob("templates/*.building"), *cache.glob(".pykvm-snapshot-*/*")]:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_two_first_runs_boot_once(boot, cache: Path) -> None:
    with first_boot(cache) as one:
        done = boot("--json", "--exec", "echo hi")
        assert one.communicate(timeout=linux_patience()) == (b"hi\n", b"")
    assert json.loads(done.stdout)["stdout"] == {"text": "hi\n"}
    assert "kernel loaded" not in steps(done)
    assert [len(name) for name in os.listdir(cache / "templates")] == [32]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_first_boot_leaves_nothing(boot, cache: Path, number: int) -> None:
    with first_boot(cache) as process:
        process.send_signal(number)
        process.communicate(timeout=linux_patience())
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert boot("--exec", "echo hi").stdout == b"hi\n"
    assert [len(name) for name in os.listdir(cache / "templates")] == [32]


def test_a_library_gets_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = pykvm.MachineConfig(guest="guest", agent=True, console="none", append=PANICS)
    with pytest.raises(TemplateError, match=r"without disks, the guest did not boot: .*panic"):
        template(broken, timeout=linux_patience())
    with pytest.raises(TemplateError):
        template(broken, timeout=linux_patience())
    with pytest.raises(pykvm.UsageError, match="has no template"):
        template(pykvm.MachineConfig(guest="guest"))
    texts: list[str] = []
    with pytest.raises(BootFailed, match="ended by its user"):
        template(
            CONFIG,
            progress=texts.append,
            watch=lambda machine: machine.finish(pykvm.Outcome.quit()),
        )
    assert texts == ["first start of this guest on this host: booting it once"]
    monkeypatch.setenv("PYKVM_TEMPLATE_LIMIT", "0")
    with machine(CONFIG) as made:
        assert not made.restored
        assert not [text for text in made.notices if "template" in text]
