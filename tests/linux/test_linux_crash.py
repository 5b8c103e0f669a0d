"""Power cuts of a disk that Linux uses: they break a filesystem only if it has no barriers."""

import re

import pytest
from patience import linux_patience
from plugin_here import PLUGIN

import pykvm
from pykvm.crash import InGuest, Recorded, describe, ext4
from pykvm.devices.virtio_blk.observe.write_log import WriteKind

pytestmark = [pytest.mark.kvm, pytest.mark.linux, pytest.mark.one_form]
pytest_plugins = ["pytester"]

MAKE = "mke2fs -q -t ext4 -b 1024 /dev/vda && mount -t ext4 -o {} /dev/vda /mnt && echo 1 > /mnt/a"
WORK = "mkdir /mnt/A && mv /mnt/a /mnt/A/b && rm /mnt/A/b && sync"
STATES = 200


def recorded(folder, options: str, setup: str = "true", work: str = WORK) -> Recorded:
    with pykvm.boot(disks=["8M"], timeout=linux_patience()) as guest:
        guest.run(f"{MAKE.format(options)} && {setup} && sync")
        with guest.disks[0].record() as recording:
            recording.mark("begin")
            guest.run(work)
            recording.mark("synced")
            recording.save(folder)
    return Recorded(folder)


def test_a_power_cut_breaks_a_filesystem_without_barriers_and_the_cause_is_one_write(tmp_path):
    found = recorded(tmp_path / "r", "barrier=0")
    report = found.explore(most=STATES)
    assert report.failures, str(report)
    smallest = found.minimise(report.failures[0].id)
    assert len(describe(smallest)) <= 4  # the cut, and at most three writes
    found.write_image(smallest.id, tmp_path / "image")
    assert found.problem(smallest.id).startswith("e2fsck")


def test_no_power_cut_breaks_a_filesystem_with_barriers(tmp_path):
    found = recorded(tmp_path / "r", "barrier=1")
    kinds = [entry.kind for entry in found.log.entries]
    assert kinds.count(WriteKind.FLUSH) >= 2

    def synced_changes_stay(survivor) -> None:
        if "synced" in survivor.marks and not survivor.exists("/A"):
            raise AssertionError("/A is lost")

    report = found.explore([ext4, synced_changes_stay], most=STATES)
    assert report.failures == []
    assert report.coverage.complete or report.checked == STATES
    # The guest's own kernel recovers some of them, too.
    with pykvm.boot(disks=[], timeout=linux_patience()) as guest, guest.snapshot() as snapshot:
        mounts = InGuest(snapshot, 'mount -t ext4 "$DISK" /mnt && [ -z "$MARKS" ] || ls /mnt')
        lists = InGuest(snapshot, "mount -t ext4 $DISK /mnt && ls /mnt && false")
        assert found.explore([mounts], most=3, workers=2).failures == []
        (failure, *_) = found.explore([lists], most=1).failures
        assert "ended with status 1: " in failure.reason
        assert "lost+found" in failure.reason
        dies = InGuest(snapshot, "echo c > /proc/sysrq-trigger")
        (failure, *_) = found.explore([dies], most=1).failures
        assert "in the guest: " in failure.reason


def the_numbers_are_there(survivor) -> None:
    if survivor.exists("/n"):
        return
    if not survivor.exists("/n.gz") or len(survivor.read("/n.gz")) < 20:
        raise AssertionError("the numbers are gone")


def old_or_new(survivor) -> None:
    content = survivor.read("/f") if survivor.exists("/f") else None
    if content not in (b"old\n", b"new\n"):
        raise AssertionError(f"/f has {content!r}")


SYNC_ANOTHER = "echo > /mnt/other && sync -d /mnt/other"
GZIP = ("barrier=1", "seq 1 300 > /mnt/n")
KEPT = "gzip -k /mnt/n && sync -d /mnt/n.gz && rm /mnt/n"
RENAME = ("echo old > /mnt/f", f"echo new > /mnt/t && mv /mnt/t /mnt/f && {SYNC_ANOTHER}")


@pytest.mark.parametrize(
    ("options", "setup", "work", "check", "loses"),
    [
        (*GZIP, f"gzip /mnt/n && {SYNC_ANOTHER}", the_numbers_are_there, True),
        (*GZIP, f"{KEPT} && {SYNC_ANOTHER}", the_numbers_are_there, False),
        ("noauto_da_alloc", *RENAME, old_or_new, True),
        ("auto_da_alloc", *RENAME, old_or_new, False),
    ],
    ids=["gzip", "gzip that syncs first", "rename", "rename with ext4's own care"],
)
def test_a_program_that_does_not_sync_loses_data(tmp_path, options, setup, work, check, loses):
    found = recorded(tmp_path / "r", options, setup, work)
    report = found.explore([ext4, check], most=STATES)
    assert bool(report.failures) == loses, str(report)
    # The filesystem itself is whole.
    assert not any(failure.reason.startswith("e2fsck") for failure in report.failures)


def test_a_guest_that_is_put_back_spoils_a_recording():
    with (
        pykvm.boot(disks=["8M"], timeout=linux_patience()) as guest,
        guest.snapshot(),
        guest.disks[0].record() as recording,
    ):
        guest.run("echo x > /dev/vda; sync")
        assert recording.log.entries
        guest.reset()
        with pytest.raises(pykvm.UsageError, match="put back"):
            _ = recording.log


PLUGIN_TEST = f"""
import pytest

@pytest.mark.pykvm(disk="8M")
def test_it(pykvm_crash):
    recorded = pykvm_crash.record({MAKE.format("barrier=0")!r} + " && sync", {WORK!r})
    pykvm_crash.check(recorded)
"""


def test_the_plugin_reports_the_smallest_state_and_checks_it_again(pytester):
    pytester.makepyfile(test_it=PLUGIN_TEST)

    def run(*options: str) -> str:
        options = (*PLUGIN, "-p", "no:cacheprovider", "--basetemp", "kept", *options)
        result = pytester.runpytest_subprocess(*options, timeout=linux_patience())
        result.assert_outcomes(failed=1)
        return result.stdout.str()

    output = run("--pykvm-crash-states", "200")
    assert "power cuts break it: 200 states checked" in output
    folder, name = re.search(r"--pykvm-crash-replay (\S+),(\S+)", output).groups()
    (pytester.path / "kept").rename(pytester.path / "moved")
    option = f"--pykvm-crash-replay={folder.replace('/kept/', '/moved/')},{name}"
    again = run(option)
    assert re.search(r"^the power is cut after .*$", again, re.M)[0] in output
    assert "e2fsck" in again
