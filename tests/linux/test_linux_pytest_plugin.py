"""The pytest plugin with guests: the fixtures, and the report of tests that fail."""

import re

import pytest
from own_kernel import own_kernel
from patience import linux_patience
from plugin_here import PLUGIN

from pykvm.cli.main import main

pytestmark = [pytest.mark.kvm, pytest.mark.linux, pytest.mark.one_form]
pytest_plugins = ["pytester"]

FIXTURES = """
import pytest
import pykvm

PREPARE = "mke2fs -q -t ext4 -F /dev/vda && mount /dev/vda /mnt && echo 1 > /mnt/file"

@pytest.fixture(scope="session")
def pykvm_spec():
    return {"disk": "2M", "memory": "64M"}

def test_sync_reaches_the_disk(pykvm_guest, pykvm_disk):
    pykvm_guest.run("echo hello > /dev/vda && sync /dev/vda")
    assert pykvm_disk.read(0, 5) == b"hello"
    assert pykvm_disk.stats.flush_operations >= 1

def test_the_disk_is_as_new(pykvm_guest, pykvm_disk):
    assert pykvm_disk.read(0, 5) == bytes(5)
    assert pykvm_guest.disks == [pykvm_disk]

@pytest.mark.pykvm(prepare=PREPARE)
class TestPrepared:
    def test_the_snapshot_is_of_a_prepared_guest(self, pykvm_snapshot, pykvm_factory):
        one, other = pykvm_factory(), pykvm_factory()
        one.run("echo 2 > /mnt/file")
        assert other.run("cat /mnt/file").text == "1"
        with pykvm_snapshot.restore() as third:
            assert third.run("cat /mnt/file").text == "1"

    def test_a_shared_guest_is_changed(self, pykvm_shared_guest, pykvm_disk):
        pykvm_disk.faults.add(pykvm.Fault(operation="write", errno="EIO"))
        pykvm_shared_guest.run("rm /mnt/file")
        TestPrepared.guest = pykvm_shared_guest

    def test_and_is_put_back(self, pykvm_shared_guest, pykvm_disk):
        assert pykvm_shared_guest is TestPrepared.guest
        assert pykvm_shared_guest.run("cat /mnt/file").text == "1"
        assert pykvm_disk.faults.rules == ()

    @pytest.mark.pykvm(fail_on=())
    def test_a_panic_may_be_expected(self, pykvm_shared_guest):
        with pytest.raises(pykvm.GuestDied):
            pykvm_shared_guest.run("echo c > /proc/sysrq-trigger")

    def test_after_it_comes_a_new_guest(self, pykvm_shared_guest):
        assert pykvm_shared_guest is not TestPrepared.guest
        assert pykvm_shared_guest.run("cat /mnt/file").text == "1"

def test_a_panic_that_nobody_expects(pykvm_guest):
    with pytest.raises(pykvm.GuestDied):
        pykvm_guest.run("echo c > /proc/sysrq-trigger")

def test_a_report_before_a_reset(pykvm_guest):
    pykvm_guest.run("echo '<1>BUG: kernel NULL pointer dereference' > /dev/kmsg")
    pykvm_guest.console.wait_for("dereference")
    pykvm_guest.reset()

def test_a_command_fails(pykvm_guest, pykvm_disk):
    pykvm_disk.faults.add(pykvm.Fault(operation="write", errno="EIO"))
    pykvm_guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct")

def test_a_guest_that_is_closed(pykvm_factory, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pykvm_factory(disks=[])
    with pykvm_factory():
        pass
    assert 0

@pytest.mark.pykvm(memroy="1M")
def test_a_mistake(pykvm_guest):
    pass
"""


def lines(result: pytest.RunResult, start: str) -> str:
    """The part of the output of a run between the title ``start`` and the next title."""
    text = result.stdout.str()
    match = re.search(rf"^[_-]+ {re.escape(start)} [_-]+\n(.*?)^[_=-]{{4}}", text, re.M | re.S)
    assert match, text
    return match[1]


@pytest.fixture
def run(pytester: pytest.Pytester):
    """A function that runs pytest in a process of its own."""

    def run(*arguments: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        options = (*PLUGIN, "-p", "no:cacheprovider", "--strict-markers", *arguments)
        return pytester.runpytest_subprocess(*options, timeout=linux_patience())

    return run


def test_the_fixtures_and_the_report(run, pytester: pytest.Pytester) -> None:
    options = ("--pykvm-snapshot-on-failure", "--pykvm-artefacts", "kept")
    result = run(*options, test_it=FIXTURES)
    result.assert_outcomes(passed=7, failed=4, errors=1)

    panic = lines(result, "test_a_panic_that_nobody_expects")
    assert panic.startswith(
        "the guest's kernel has reported a failure (panic): Kernel panic - not syncing: sysrq"
    )

    before = lines(result, "test_a_report_before_a_reset")
    report = "BUG: kernel NULL pointer dereference"
    assert before.startswith(f"the guest's kernel has reported a failure (oops): {report}\n")

    result.stdout.fnmatch_lines(
        [
            "*test_a_command_fails*",
            '>       pykvm_guest.run("dd if=*',
            "E       *CommandFailed: 'dd if=* ended with status 1",
            "E       dd: error writing '/dev/vda': I/O error",
            "*- pykvm guest -*",
            "the guest runs",
            "*- pykvm guest: commands -*",
            "* s  status 1    'dd if=*",
            "*- pykvm guest: console since the test began -*",
            "I/O error, dev vda, sector 0*",
            "*- pykvm guest: disk virtio0 -*",
            "*failed: 0 reads, 1 writes, 0 flushes",
            "struck 1 of 1 matches: Fault(operation='write', errno='EIO')",
            "*write *sector 0, 4096 bytes *the host failed: EIO; policy: report",
            "*write *sector 0, 4096 bytes *ioerr in * µs",
            "*- pykvm files -*",
            "the files are in *kept/test_it.py-test_a_command_fails-*",
            "a shell in the guest:",
            "* -m pykvm snapshot restore *kept/test_it.py-test_a_command_fails-*/snapshot",
        ]
    )
    assert "process.py" not in result.stdout.str()  # no frames of pykvm

    closed = lines(result, "pykvm guest 2")
    assert closed == "the guest's run is over: the guest was closed\n"
    result.stdout.fnmatch_lines(
        [
            "a shell in the guest 1:",
            "* -m pykvm snapshot restore */guest-1/snapshot",
            "the guest 2 has ended, so no shell can be opened in it",
        ]
    )

    mistake = lines(result, "ERROR at setup of test_a_mistake")
    assert mistake == "a test's guest has no keyword 'memroy'; did you mean 'memory'?\n"

    kept = {path.name.rpartition("-")[0]: path for path in pytester.path.joinpath("kept").iterdir()}
    assert sorted(kept) == [
        "test_it.py-test_a_command_fails",
        "test_it.py-test_a_guest_that_is_closed",
        "test_it.py-test_a_panic_that_nobody_expects",
        "test_it.py-test_a_report_before_a_reset",
    ]
    names = {path.name for path in kept["test_it.py-test_a_command_fails"].iterdir()}
    assert names == {
        *("commands.txt", "console.txt", "disks.json", "dmesg.txt", "snapshot", "trace.jsonl")
    }


WORKERS_CONFTEST = """
import os
import pytest
import pykvm.templates.build as build

# Guests of tests beside this one would take the places of its guests.
os.environ["PYKVM_CACHE"] = os.path.abspath("cache")

boot = build.save_booted

def counted(*arguments, **options):
    with open("boots", "a") as file:
        file.write("boot\\n")
    return boot(*arguments, **options)

build.save_booted = counted

@pytest.fixture(scope="session")
def pykvm_spec():
    return {"append": "of.this.test=1", "disk": "1M"}
"""
WORKERS = """
import pytest

@pytest.mark.pykvm(guest=None, kernel=KERNEL, append="")
def test_a_kernel_without_a_root(pykvm_machine):
    pykvm_machine.console.wait_for("login:")

@pytest.mark.pykvm(append="rdinit=/nothing")
def test_a_kernel_without_a_program(pykvm_guest):
    pass

@pytest.mark.parametrize("number", range(4))
def test_one_guest_at_a_time(pykvm_guest, number):
    with open("order", "a") as file:
        file.write("begin\\n")
    pykvm_guest.run("head -c 1 /dev/vda")
    with open("order", "a") as file:
        file.write("end\\n")
    assert number < 2
"""


def test_workers_share_a_boot_and_the_memory_of_the_host(run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npykvm_memory = 64M\n")
    result = run(
        *("-n", "2", "--pykvm-artefacts", "kept", "--pykvm-trace", "on"),
        conftest=WORKERS_CONFTEST,
        test_it=WORKERS.replace("KERNEL", repr(str(own_kernel()))),
    )
    result.assert_outcomes(passed=2, failed=3, errors=1)
    # One of the guest for all workers, and one of the guest whose kernel panics.
    assert pytester.path.joinpath("boots").read_text() == "boot\n" * 2
    panic = lines(result, "ERROR at setup of test_a_kernel_without_a_program")
    start = "Kernel panic - not syncing: No working init found."
    assert len(re.findall(f"^{start}", panic, re.MULTILINE)) == 2  # the sentence, and the console
    assert pytester.path.joinpath("order").read_text() == "begin\nend\n" * 4

    kept = {path: list(path.iterdir()) for path in pytester.path.joinpath("kept").iterdir()}
    assert len(kept) == 5
    traces = [path / "trace.jsonl" for path, files in kept.items() if len(files) == 1]
    assert len(traces) == 2  # of the tests that passed
    assert main(["trace", "show", str(traces[0])]) == 0

    result.stdout.fnmatch_lines(
        [
            "*test_a_kernel_without_a_root*",
            "E *GuestDied: Kernel panic - not syncing: VFS: Unable to mount root fs*, during *",
            "*- pykvm guest -*",
            "the guest's run is over: Kernel panic - not syncing: VFS: *",
            "*- pykvm guest: reports of its kernel -*",
            "panic: Kernel panic - not syncing: VFS: *",
            "*- pykvm guest: console since the test began -*",
            "*Kernel panic - not syncing: VFS: *",
            "the guest has ended, so no shell can be opened in it",
        ]
    )
