"""The messages about a stopped guest."""

import errno

import pytest

from pykvm.cli.boot.escape_keys import HELP, EscapeParser, Key
from pykvm.cli.boot.stop_reporter import StopReporter
from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.machine.events import BlockIoError, DiskHeld, HostShortage, Resume, Shutdown, Stop
from pykvm.machine.outcome import Outcome


def failure(
    device="virtio0", action=ErrorAction.STOP, number=errno.ENOSPC, operation="write", lost=False
):
    return BlockIoError(device, IoError(operation, 2048, 4096, number, action, lost))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def last_words() -> list[str]:
    return []


@pytest.fixture
def reporter(said, last_words):
    """A function that makes a reporter with some ways to go on."""
    images = {"virtio0": "a.img", "virtio1": "b.img"}
    return lambda *ways: StopReporter(images, ways, said.append, give_up=last_words.append)


def test_a_failure_names_the_request_and_the_way_out(reporter, said):
    reporter("Ctrl-a c", "'cont' on the monitor m")(failure())
    assert said == [
        "virtio0 (a.img): a write of 4096 bytes at sector 2048 failed: "
        "no space left on device (ENOSPC); the guest is stopped: "
        "make space, then Ctrl-a c or 'cont' on the monitor m tries again"
    ]


def test_a_full_quota_can_be_raised(reporter, said):
    reporter("Ctrl-a c")(failure(number=errno.EDQUOT))
    assert said[0].endswith(
        "disk quota exceeded (EDQUOT); the guest is stopped: "
        "make space or raise the quota, then Ctrl-a c tries again"
    )


def test_the_folder_that_needs_space_is_named(said):
    rooms = {"virtio0": "/t"}
    tell = StopReporter({"virtio0": "a.img"}, ["Ctrl-a c"], said.append, rooms, give_up=said.append)
    tell(failure())
    assert "make space in /t, where snapshot=on keeps the guest's writes, then Ctrl-a c" in said[0]


@pytest.mark.parametrize("ways", [(), ("Ctrl-a c",)])
def test_the_message_on_lost_data_does_not_ask_for_space(reporter, said, last_words, ways):
    reporter(*ways)(failure(operation="flush", lost=True))
    (text,) = said + last_words
    assert "a flush failed: no space left on device (ENOSPC)" in text
    assert "check the image's contents" in text
    assert "make space" not in text
    assert "tries again" not in text


def test_lost_data_are_reported_once_while_the_guest_continues(reporter, said):
    tell = reporter("Ctrl-a c")
    for operation in ("flush", "write", "flush"):
        tell(failure(operation=operation, action=ErrorAction.REPORT, lost=True))
    tell(failure("virtio1", operation="flush", action=ErrorAction.REPORT, lost=True))
    assert [text[:7] for text in said] == ["virtio0", "virtio1"]
    assert said[0] == (
        "virtio0 (a.img): a flush failed: no space left on device (ENOSPC); "
        "data that the guest wrote since its last flush may be lost, "
        "and every later flush of this run fails"
    )


def test_without_a_way_out_the_run_ends_with_the_reason(reporter, said, last_words):
    tell = reporter()
    tell(failure(action=ErrorAction.REPORT))
    assert not last_words
    tell(failure(number=errno.EIO, operation="flush"))
    assert not said
    (text,) = last_words
    assert "a flush failed: input/output error (EIO); the run ends here: remove the cause" in text
    assert "sector" not in text
    assert "--monitor" in text


def test_each_disk_once_for_each_stop(reporter, said):
    tell = reporter("Ctrl-a c")
    for event in (failure(), failure(), failure("virtio1"), Stop()):
        tell(event)
    assert [text[:7] for text in said] == ["virtio0", "virtio1"]
    tell(Resume())
    tell(failure())
    assert len(said) == 3


def test_errors_that_do_not_stop_are_the_guests_own(reporter, said):
    tell = reporter("Ctrl-a c")
    tell(failure(action=ErrorAction.REPORT))
    tell(failure(action=ErrorAction.IGNORE))
    tell(Resume())
    tell(Shutdown(Outcome.quit()))
    assert said == []


def test_a_guest_that_the_user_stopped(reporter, said):
    reporter("Ctrl-a c")(Stop())
    assert said == ["the guest is stopped; Ctrl-a c lets it continue"]


def test_a_shortage_of_the_host_is_reported_once(reporter, said):
    tell = reporter("Ctrl-a c")
    files = HostShortage("virtio0", "too many open files")
    for event in (files, files, Resume(), files, HostShortage("virtio1", "too many open files")):
        tell(event)
    assert said == [
        f"virtio{disk} ({image}.img): the host cannot serve the disk, too many open files; "
        "the disk does no I/O until the guest resets it"
        for disk, image in ((0, "a"), (1, "b"))
    ]


def test_a_driver_without_bus_mastering_is_reported_once(reporter, said):
    tell = reporter("Ctrl-a c")
    for event in (DiskHeld("virtio0"), Resume(), DiskHeld("virtio0"), DiskHeld("virtio1")):
        tell(event)
    assert [text[:15] for text in said] == ["virtio0 (a.img)", "virtio1 (b.img)"]
    assert "bus master" in said[0]
    assert "wait" in said[0]


def test_keys():
    keys = EscapeParser().feed(b"\x01s\x01C\x01c\x01S")
    assert keys == [Key.STOP, Key.CONTINUE, Key.CONTINUE, Key.STOP]
    assert "Ctrl-a c" in HELP
    assert "Ctrl-a s" in HELP
