"""``pykvm snapshot``, and the other ways to save a running guest, with the bare guest."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from monitor_clients import Raw, listens, run_client, served, spinning_guest
from patience import patience
from run_on_terminal import Terminal

from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.cli.main import main
from pykvm.machine import Machine, MachineConfig

pytestmark = pytest.mark.kvm

PYKVM = [sys.executable, "-m", "pykvm"]
MEMORY = f"{MEMORY_NEEDED >> 20}M"


@pytest.fixture
def saved(tmp_path: Path, bare_kernel: Path) -> Path:
    """A snapshot of the bare guest that echoes what is typed."""
    config = MachineConfig(kernel=bare_kernel, append="echo", memory=MEMORY_NEEDED)
    folder = tmp_path / "saved"
    with Machine(config) as machine:
        machine.start()
        machine.board.console.feed(b"x")
        deadline = time.monotonic() + patience()
        while b"x" not in machine.console_output:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        machine.save(folder)
    return folder


def guest(kernel: Path, append: str = "echo") -> list[str]:
    return ["--kernel", str(kernel), "--append", append]


# -- QMP --------------------------------------------------------------------------


def test_qemus_client_saves_the_guest(qmp_path: Path, machine: Machine, tmp_path: Path) -> None:
    async def talk(client):
        with client.listener("JOB_STATUS_CHANGE") as events:
            arguments = {"job-id": "job0", "tag": str(tmp_path / "one")}
            assert await client.execute("snapshot-save", arguments) == {}
            found = []
            while not found or found[-1]["status"] != "concluded":
                found.append((await events.get())["data"])
            jobs = await client.execute("query-jobs")
            await client.execute("job-dismiss", {"id": "job0"})
            return found, jobs, await client.execute("query-jobs")

    found, jobs, left = run_client(qmp_path, talk)
    assert [data["status"] for data in found] == ["created", "running", "concluded"]
    assert {data["id"] for data in found} == {"job0"}
    assert [job.get("error") for job in jobs] == [None]
    assert left == []
    assert (tmp_path / "one" / "manifest.json").exists()
    assert machine.status.value == "running"


def test_qemus_client_puts_the_guest_back(qmp_path: Path, machine: Machine, tmp_path: Path) -> None:
    async def talk(client):
        await client.execute("snapshot-save", {"job-id": "save", "tag": str(tmp_path / "one")})
        await concluded(client, "save")
        with client.listener(("STOP", "RESUME")) as events:
            await client.execute("snapshot-load", {"job-id": "load", "tag": str(tmp_path / "one")})
            await concluded(client, "load")
            names = [(await events.get())["event"] for _ in range(2)]
        await client.execute("stop")
        await client.execute("snapshot-load", {"job-id": "stopped", "tag": str(tmp_path / "one")})
        await concluded(client, "stopped")
        await client.execute("snapshot-load", {"job-id": "none", "tag": str(tmp_path / "none")})
        await concluded(client, "none")
        return names, await client.execute("query-jobs"), await client.execute("query-status")

    async def concluded(client, id: str) -> None:
        while True:
            jobs = {job["id"]: job for job in await client.execute("query-jobs")}
            if jobs[id]["status"] == "concluded":
                return
            await asyncio.sleep(0.01)

    names, jobs, status = run_client(qmp_path, talk)
    assert names == ["STOP", "RESUME"]
    assert [(job["type"], job.get("error", "")[:12]) for job in jobs] == [
        ("snapshot-save", ""),
        ("snapshot-load", ""),
        ("snapshot-load", ""),
        ("snapshot-load", "the snapshot"),
    ]
    assert status == {"status": "paused", "running": False}
    assert machine.restored


def test_commands_of_jobs_check_their_arguments(qmp_path: Path, machine: Machine) -> None:
    with Raw(qmp_path) as client:
        for command, arguments in (
            ("snapshot-save", {"job-id": "a"}),
            ("snapshot-save", {"job-id": "a", "tag": 1}),
            ("snapshot-save", {"job-id": "", "tag": "b"}),
            ("snapshot-load", {"job-id": "a", "tag": ""}),
            ("snapshot-save", {"job-id": "a", "tag": "b", "vmstate": "c"}),
            ("job-dismiss", {"id": "a"}),
        ):
            assert client.ask(command, arguments=arguments)["error"]["class"] == "GenericError"
        assert client.ask("query-jobs") == {"return": []}


# -- snapshot save -------------------------------------------------------------------


def test_save_asks_a_running_pykvm(
    qmp_path: Path, machine: Machine, tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["snapshot", "save", str(qmp_path), "here"]) == 0
    assert capfd.readouterr().out == f"the guest is saved in {tmp_path}/here\n"
    assert main(["snapshot", "save", str(qmp_path), "here"]) == 125
    assert "the guest is not saved: " in (error := capfd.readouterr().err)
    assert "exists already" in error


def test_save_needs_a_monitor(tmp_path: Path, capfd) -> None:
    for path in (tmp_path / "none", tmp_path / ("x" * 200)):
        assert main(["snapshot", "save", str(path), "x"]) == 2
        assert "does not answer: " in capfd.readouterr().err
    assert main(["snapshot", "save", str(tmp_path)]) == 2
    assert main(["snapshot", "save"]) == 2


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """Serves one client with the given bytes, and leaves."""
    threads = []

    def serve(data: bytes) -> Path:
        path = tmp_path / "other"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            with listener, listener.accept()[0] as client:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return path

    yield serve
    for thread in threads:
        thread.join(patience())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has ended the conversation"),
        (b"hello\n", "is no monitor of pykvm"),
        (b"[" * 100_000 + b"\n", "is no monitor of pykvm"),
        (b'{"QMP": {}}\n', "has ended the conversation"),
        (b'{"QMP": {}}\n{"id": "qmp_capabilities", "error": 7}\n', "qmp_capabilities failed"),
        (
            b'{"QMP": {}}\n{"id": "qmp_capabilities", "return": {}}\n'
            b'{"id": "query-status", "return": 7}\n'
            b'{"id": "snapshot-save", "return": {}}\n{"id": "query-jobs", "return": [7, {}]}\n',
            "the job that saves the guest is gone",
        ),
    ],
)
def test_save_understands_no_other_server(answering, capfd, data: bytes, words: str) -> None:
    assert main(["snapshot", "save", str(answering(data)), "x"]) == 125
    assert words in capfd.readouterr().err


def test_save_does_not_wait_for_ever(tmp_path: Path, capfd) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent"))
        listener.listen()
        command = ["snapshot", "save", str(tmp_path / "silent"), "x", "--timeout", "0.1"]
        assert main(command) == 125
    assert "is silent; give more time by --timeout S" in capfd.readouterr().err


# -- info, verify ----------------------------------------------------------------------


def test_info_says_what_it_is_and_if_it_fits(saved: Path, bare_kernel: Path, capfd) -> None:
    assert main(["snapshot", "info", str(saved), *guest(bare_kernel)]) == 0
    text = capfd.readouterr().out
    assert f"1 CPU, {MEMORY_NEEDED >> 20} MiB of memory" in text
    assert text.endswith("here      can be restored\n")
    command = ["snapshot", "info", str(saved), *guest(bare_kernel, "spin"), "--json"]
    assert main(command) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["cpus"], found["memory"]) == (1, MEMORY_NEEDED)
    assert found["folder"] == str(saved)
    assert "belongs to a different guest, or to other options" in found["problem"]
    assert main(["snapshot", "info", str(saved / "none"), *guest(bare_kernel)]) == 125
    assert "cannot be read: no such file" in capfd.readouterr().err


def test_verify_reads_everything(saved: Path, capfd) -> None:
    assert main(["snapshot", "verify", str(saved)]) == 0
    assert capfd.readouterr().out.endswith(", as it was written\n")
    assert main(["snapshot", "verify", str(saved), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["folder"] == str(saved)
    with open(saved / "ram", "r+b") as ram:
        ram.seek(MEMORY_NEEDED - 1)
        ram.write(b"\x01")
    assert main(["snapshot", "verify", str(saved)]) == 125
    assert "has changed since it was written: its ram is different" in capfd.readouterr().err


def test_mistakes_have_hints(capfd) -> None:
    assert main(["snapshot"]) == 0
    assert "snapshot save SOCKET DIR" in capfd.readouterr().out
    assert main(["snapshot", "inof", "x"]) == 2
    assert "did you mean 'info'" in capfd.readouterr().err
    for action in ("info", "verify", "restore"):
        assert main(["snapshot", action]) == 2
        assert "there is no snapshot named" in capfd.readouterr().err
        with pytest.raises(SystemExit) as left:
            main(["snapshot", action, "--help"])
        assert not left.value.code
        capfd.readouterr()


# -- restore ------------------------------------------------------------------------------


def test_restore_goes_on_where_it_was(saved: Path, bare_kernel: Path) -> None:
    command = [*PYKVM, "snapshot", "restore", str(saved), *guest(bare_kernel)]
    for _ in range(2):
        done = subprocess.run(
            command, input=b"typed later", capture_output=True, check=True, timeout=patience()
        )
        # The guest ends at the end of its input.
        assert (done.stdout, done.stderr) == (b"typed later\n", b"")


def test_restore_of_a_different_guest_is_refused(saved: Path, bare_kernel: Path, capfd) -> None:
    assert main(["snapshot", "restore", str(saved), *guest(bare_kernel, "spin")]) == 125
    assert "belongs to a different guest, or to other options" in capfd.readouterr().err
    assert main(["snapshot", "restore", str(saved / "none"), *guest(bare_kernel)]) == 125
    command = ["snapshot", "restore", str(saved), *guest(bare_kernel), "-m", "2M"]
    assert main(command) == 125


# -- --save-in, Ctrl-a w, the sandbox -------------------------------------------------------


def do_job(client: Raw, command: str, tag: str) -> None:
    """Have the monitor do ``command`` to its end, without an error."""
    assert client.ask(command, arguments={"job-id": "job", "tag": tag}) == {"return": {}}
    while (job := client.ask("query-jobs")["return"][0])["status"] != "concluded":
        time.sleep(0.01)
    assert "error" not in job
    assert client.ask("job-dismiss", arguments={"id": "job"}) == {"return": {}}


@pytest.mark.parametrize("sandbox", ["auto", "off"])
def test_a_confined_guest_is_saved_in_its_folder_only(
    tmp_path: Path, bare_kernel: Path, qmp_path: Path, sandbox: str, capfd
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    image = tmp_path / "d.img"
    image.write_bytes(bytes(1 << 20))
    command = [*PYKVM, "boot", *guest(bare_kernel, "spin"), "-m", MEMORY, "--monitor"]
    command += [str(qmp_path), "--save-in", str(inside), "--sandbox", sandbox]
    command += ["--disk", f"{image},snapshot=on", "--disk", "blank=1M"]
    run = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + patience()
        while not listens(qmp_path):
            assert time.monotonic() < deadline
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        save = [*PYKVM, "snapshot", "save", str(qmp_path)]
        subprocess.run([*save, str(inside / "one")], check=True, timeout=patience())
        done = subprocess.run(
            [*save, str(outside)], capture_output=True, check=False, timeout=patience()
        )
        if sandbox == "off":
            assert done.returncode == 0
        elif done.returncode == 0:
            pytest.skip("this host has no sandbox")
        else:
            assert b"permission denied" in done.stderr
            assert not outside.exists()
        with Raw(qmp_path) as client:
            do_job(client, "snapshot-save", "two")
            do_job(client, "snapshot-load", "two")
            assert client.ask("quit") == {"return": {}}
        stderr = run.communicate(timeout=patience())[1]
        assert stderr.endswith(b"\npykvm: ended by quit on the monitor\n")
        assert b"Traceback" not in stderr
        assert run.returncode == 0
    finally:
        run.kill()
        run.communicate()
    assert sorted(os.listdir(inside)) == ["one", "two"]
    assert_info_judges_disks(inside / "two", image, bare_kernel, capfd)


def assert_info_judges_disks(folder: Path, image: Path, bare_kernel: Path, capfd) -> None:
    assert main(["snapshot", "verify", str(folder)]) == 0
    command = ["snapshot", "info", str(folder), *guest(bare_kernel, "spin")]
    capfd.readouterr()
    assert main([*command, "--disk", f"{image},snapshot=on", "--disk", "blank=1M"]) == 0
    assert capfd.readouterr().out.endswith("here      can be restored\n")
    assert main(command) == 0
    text = capfd.readouterr().out
    assert f"{image},snapshot=on (to be named by --disk)" in text
    assert "blank, 1.0 MiB" in text
    assert text.endswith("here      can be restored\n")
    assert main([*command, "--disk", f"{image},snapshot=on"]) == 0
    assert "configure the disks that were saved, in the same order" in capfd.readouterr().out
    image.write_bytes(b"x" + bytes((1 << 20) - 1))
    assert main([*command, "--disk", f"{image},snapshot=on", "--disk", "blank=1M"]) == 0
    assert "has changed since the snapshot was taken" in capfd.readouterr().out


@pytest.mark.parametrize("place", ["none", "file"])
def test_save_in_needs_a_folder(tmp_path: Path, bare_kernel: Path, capfd, place: str) -> None:
    (tmp_path / "file").touch()
    command = ["boot", *guest(bare_kernel, "hello 0"), "--save-in", str(tmp_path / place)]
    assert main(command) == 2
    assert f"--save-in {tmp_path / place}: it is no folder" in capfd.readouterr().err


def test_save_in_and_shared_memory_exclude_each_other(tmp_path: Path, bare_kernel: Path) -> None:
    options = ["--save-in", str(tmp_path), "-m", f"{MEMORY},shared=on"]
    command = [*PYKVM, "boot", *guest(bare_kernel, "hello 0"), *options]
    done = subprocess.run(command, capture_output=True, check=False, timeout=patience())
    assert done.returncode == 2
    assert b"has no snapshots: its memory would be shared no longer" in done.stderr
    assert b"leave out shared=on" in done.stderr


def test_a_key_saves_the_guest(tmp_path: Path, bare_kernel: Path) -> None:
    options = [*guest(bare_kernel), "-m", MEMORY]
    terminal = Terminal(*options, "--save-in", str(tmp_path))
    try:
        terminal.wait_until_raw()
        terminal.type(b"a")
        terminal.expect(b"a")
        for number in (1, 2):
            terminal.type(b"\x01w")
            terminal.expect(b"\r\npykvm: the guest is saved in")
            terminal.expect(b"snapshot-%d\r\n" % number)
        terminal.type(b"b\x01h")
        terminal.expect(b"b")
        terminal.expect(b"Ctrl-a w       save the guest in the folder of --save-in\r\n")
        terminal.type(b"\x01x")
        assert terminal.finish() == 0
    finally:
        terminal.close()
    assert sorted(os.listdir(tmp_path)) == ["snapshot-1", "snapshot-2"]
    terminal = Terminal(*options)
    try:
        terminal.wait_until_raw()
        terminal.type(b"\x01w")
        terminal.expect(b"start pykvm with --save-in DIR to save the guest by Ctrl-a w")
        terminal.type(b"\x01x")
        assert terminal.finish() == 0
    finally:
        terminal.close()


def test_a_job_ends_before_the_monitor_does(
    tmp_path: Path, bare_kernel: Path, qmp_path: Path, monkeypatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    save = Machine.save

    def slow(self: Machine, folder: Path) -> None:
        begun.set()
        assert go_on.wait(patience())
        save(self, folder)

    monkeypatch.setattr(Machine, "save", slow)
    with served(qmp_path, spinning_guest(bare_kernel)) as machine:
        machine.start()
        with Raw(qmp_path) as client:
            arguments = {"job-id": "j", "tag": str(tmp_path / "one")}
            assert client.ask("snapshot-save", arguments=arguments) == {"return": {}}
            assert begun.wait(patience())
            assert client.ask("query-status")["return"]["running"]
        go_on.set()
    assert (tmp_path / "one").is_dir()
