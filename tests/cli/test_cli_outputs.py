"""No output of a command destroys a different file."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from patience import patience

from pykvm.cli.main import main

OUTPUTS = ("--console-log", "--stats", "--trace")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A guest's folder, with two flavours."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    names = ("NOTICE", "vmlinux", "initrd", "vmlinux-e", "initrd-e")
    for name in names:
        (folder / name).write_text(name)
    flavours = {
        "native": {"kernel": "vmlinux", "initrd": "initrd"},
        "emulated": {"kernel": "vmlinux-e", "initrd": "initrd-e"},
    }
    manifest = {"format": 1, "name": "g", "flavours": flavours}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def spared(capfd: pytest.CaptureFixture[str], path: Path, arguments: list[str]) -> None:
    """``pykvm arguments`` is refused, and ``path`` keeps its contents."""
    before = path.read_bytes()
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"would overwrite {path}" in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize(
    "name", ["bundle.json", "NOTICE", "vmlinux", "initrd", "vmlinux-e", "initrd-e"]
)
def test_no_file_of_a_bundle_is_overwritten(capfd, bundle: Path, option: str, name: str):
    spared(capfd, bundle / name, ["boot", str(bundle), option, str(bundle / name)])


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_fault_file_is_spared(capfd, tmp_path: Path, option: str):
    faults, image = tmp_path / "faults.toml", tmp_path / "d.img"
    faults.write_text("seed = 1\n")
    image.write_bytes(bytes(512))
    disk = f"{image},faults={faults}"
    spared(capfd, faults, ["boot", "--kernel", "x", "--disk", disk, option, str(faults)])


def test_a_chart_spares_the_disk_and_the_faults_of_all(capfd, tmp_path: Path):
    faults, image = tmp_path / "faults.toml", tmp_path / "d.img"
    faults.write_text("seed = 1\n")
    image.write_bytes(bytes(1 << 20))
    bench = ["bench", "--workload", "randread", "--disk", str(image), "--chart"]
    spared(capfd, image, [*bench, str(image)])
    spared(capfd, faults, [*bench, str(faults), "--options", f"faults={faults}"])
    spared(capfd, faults, [*bench, str(faults), "--against", f"pykvm,faults={faults}"])


@pytest.mark.parametrize("second", ["--stats", "--trace"])
def test_two_outputs_are_two_files(capfd, tmp_path: Path, second: str):
    both = str(tmp_path / "both")
    assert main(["boot", "--kernel", "x", "--console-log", both, second, both]) == 2
    assert "are the same file" in capfd.readouterr().err
    assert not Path(both).exists()


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_run_that_fails_before_the_guest_starts_changes_no_file(
    capfd, tmp_path: Path, option: str
):
    old = tmp_path / "old"
    old.write_text("of the last run")
    assert main(["boot", "--kernel", "/no/such/kernel", option, str(old)]) in (2, 77)
    assert old.read_text() == "of the last run"


def shell(script: str, folder: Path, kernel: Path) -> subprocess.CompletedProcess[str]:
    """``script``, in which ``boot`` is a run of the bare guest that ends at once with 0."""
    boot = (
        f"boot() {{ {sys.executable} -m pykvm boot --kernel {kernel} --append 'hello 0' \"$@\";}}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", f"{boot}; {script}"],
        check=False,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=patience(120),
    )


@pytest.mark.kvm
@pytest.mark.parametrize("stream", ["/dev/stdout", "/dev/stderr", "/proc/self/fd/2", "r.log"])
def test_a_log_that_the_shell_appends_to_keeps_its_contents(
    tmp_path: Path, bare_kernel: Path, stream: str
):
    (tmp_path / "r.log").write_text("before\n")
    done = shell(f"boot --stats {stream} >>r.log 2>&1", tmp_path, bare_kernel)
    assert done.returncode == 0
    before, _, statistics = (tmp_path / "r.log").read_text().partition("hello from CPL3\n")
    assert before == "before\n"
    assert "exits" in json.loads(statistics)


@pytest.mark.kvm
def test_the_console_s_log_and_the_console_go_to_two_files(tmp_path: Path, bare_kernel: Path):
    log = tmp_path / "r.log"
    log.write_text("before\n")
    done = shell("boot --console-log /dev/stdout >>r.log", tmp_path, bare_kernel)
    assert (done.returncode, log.read_text()) == (2, "before\n")
    assert "/dev/stdout and the console are the same file" in done.stderr
    done = shell("boot --console-log /dev/stderr 2>>r.log", tmp_path, bare_kernel)
    assert (done.stdout, log.read_text()) == ("hello from CPL3\n", "before\nhello from CPL3\n")


@pytest.mark.kvm
def test_a_signal_ends_a_run_whose_statistics_nobody_reads(tmp_path: Path, bare_kernel: Path):
    fifo, image = tmp_path / "fifo", tmp_path / "d.img"
    os.mkfifo(fifo)
    image.write_bytes(bytes(512))
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "pykvm", "boot", "--kernel", bare_kernel]
    command += ["--append", "hello 0", "--stats", fifo]
    for _ in range(4):  # more to tell of than the pipe takes
        command += ["--disk", f"{image},readonly=on"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        assert select.select([reader], [], [], patience())[0]
        run.terminate()
        try:
            _, err = run.communicate(timeout=patience())
        finally:
            run.kill()
            os.close(reader)
    assert run.returncode == 128 + signal.SIGTERM
    assert err == b"pykvm: the statistics are not complete: ended by SIGTERM\n"


@pytest.mark.kvm
def test_the_file_behind_standard_input_is_spared(tmp_path: Path, bare_kernel: Path):
    (tmp_path / "script").write_text("ls\n")
    done = shell("boot --stats script <script", tmp_path, bare_kernel)
    assert (done.returncode, "overwrite standard input" in done.stderr) == (2, True)
    assert (tmp_path / "script").read_text() == "ls\n"


@pytest.mark.kvm
@pytest.mark.parametrize("stream", [">>d.img", "2>>d.img"])
def test_streams_do_not_go_into_a_disk(tmp_path: Path, bare_kernel: Path, stream: str):
    (tmp_path / "d.img").write_bytes(bytes(512))
    done = shell(f"boot --disk d.img {stream}", tmp_path, bare_kernel)
    assert done.returncode == 2
    assert (tmp_path / "d.img").read_bytes().startswith(bytes(512))


@pytest.mark.kvm
def test_json_has_standard_output_for_itself(tmp_path: Path, bare_kernel: Path):
    done = shell("boot --json --stats r.json >r.json", tmp_path, bare_kernel)
    assert (done.returncode, "--json are the same file" in done.stderr) == (2, True)


@pytest.mark.kvm
@pytest.mark.parametrize("option", ["--console-log", "--stats"])
def test_pipes_are_written_to_readers_and_never_waited_for(
    tmp_path: Path, bare_kernel: Path, option: str
):
    os.mkfifo(tmp_path / "pipe")
    done = shell(f"boot {option} pipe", tmp_path, bare_kernel)
    assert (done.returncode, "this pipe has no reader" in done.stderr) == (2, True)
    done = shell(f"boot {option} >(cat >got) && wait $!", tmp_path, bare_kernel)
    assert done.returncode == 0
    assert (tmp_path / "got").stat().st_size > 0


@pytest.mark.kvm
def test_a_disk_in_use_elsewhere_is_no_output(tmp_path: Path, bare_kernel: Path):
    from pykvm.devices.virtio_blk import Image

    path = tmp_path / "d.img"
    path.write_bytes(bytes(512))
    image = Image(path)
    try:
        done = shell("boot --console-log d.img", tmp_path, bare_kernel)
    finally:
        image.close()
    assert (done.returncode, "in use" in done.stderr) == (2, True)
    assert path.read_bytes() == bytes(512)


def test_plot_does_not_overwrite_its_trace(tmp_path: Path):
    trace = tmp_path / "t"
    trace.write_text("{}\n")
    for arguments in (
        f"plot {trace} -o {trace}",
        f"show {trace} >>{trace}",
        f"plot {trace} >>{trace}",
    ):
        done = shell(f"{sys.executable} -m pykvm trace {arguments}", tmp_path, trace)
        assert (done.returncode, f"would overwrite {trace}" in done.stderr) == (2, True)
        assert trace.read_text() == "{}\n"
