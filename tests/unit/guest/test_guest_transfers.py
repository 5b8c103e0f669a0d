"""Files to a guest and from it, with an agent that does what a test says."""

import os
import resource
from pathlib import Path

import pytest
from fake_guest import BARE, FakeTransfer
from patience import ends, in_thread, until

import pykvm
from pykvm.machine.outcome import Outcome

DATA = bytes(range(256)) * 1000


def done(transfer: FakeTransfer) -> None:
    """The guest has written a pushed file."""
    transfer.at_end = lambda: transfer.events.done(transfer.mode)


def content(*pieces: bytes, mode: int = 0o600):
    """The guest sends a file."""

    def respond(transfer: FakeTransfer) -> None:
        for piece in pieces:
            transfer.events.data(piece)
        transfer.events.done(mode)

    return respond


def test_a_push_of_bytes(fake) -> None:
    one = fake()
    one.answers(done)
    one.guest.push(DATA, "/tmp/x")
    transfer = one.command()
    assert (transfer.kind, transfer.path, transfer.mode) == ("push", b"/tmp/x", 0o644)
    assert transfer.sent == DATA
    assert not transfer.cancelled


def test_a_push_of_a_file_keeps_its_permissions(fake, tmp_path: Path) -> None:
    one = fake()
    one.answers(done)
    file = tmp_path / "tool"
    file.write_bytes(DATA)
    file.chmod(0o751)
    one.guest.push(file, "/tmp/tool")
    one.guest.push(str(file), "/tmp/tool", 0o4500)
    assert [one.command(number).mode for number in (0, 1)] == [0o751, 0o4500]
    assert one.command(1).sent == DATA


def test_a_push_sends_while_there_is_room(fake) -> None:
    one = fake()

    def respond(transfer: FakeTransfer) -> None:
        done(transfer)
        transfer.has_room = False

    one.answers(respond)
    thread = in_thread(lambda: one.guest.push(DATA, "/x"))
    transfer = one.command()
    for sent in range(1 << 16, len(DATA), 1 << 16):
        until(lambda sent=sent: len(transfer.sent) == sent)
        transfer.events.room()
    assert ends(thread)
    assert transfer.sent == DATA


def test_a_pull_gives_the_content(fake) -> None:
    one = fake()
    one.answers(content(b"a", b"b"))
    assert one.guest.pull("/etc/x") == b"ab"
    assert one.command().path == b"/etc/x"


def test_a_pull_to_a_file_replaces_it_whole(fake, tmp_path: Path) -> None:
    one = fake()
    file = tmp_path / "x"
    file.write_bytes(b"earlier")
    one.answers(content(b"a", b"b", mode=0o100750))
    assert one.guest.pull("/x", file) is None
    assert file.read_bytes() == b"ab"
    assert file.stat().st_mode & 0o777 == 0o750
    one.answers(lambda transfer: transfer.events.failed("/x: gone"))
    with pytest.raises(pykvm.GuestError, match="the pull of /x failed: /x: gone"):
        one.guest.pull("/x", str(file))
    assert file.read_bytes() == b"ab"
    assert os.listdir(tmp_path) == ["x"]


def test_a_host_that_cannot_read_or_write(fake, tmp_path: Path) -> None:
    one = fake()
    one.answers(content(b"a"))
    with pytest.raises(pykvm.UsageError, match="none cannot be read: no such file"):
        one.guest.push(tmp_path / "none", "/x")
    with pytest.raises(pykvm.UsageError, match="/none/x cannot be written: no such file"):
        one.guest.pull("/x", tmp_path / "none/x")
    assert one.client.commands == []


def test_a_host_whose_disk_is_full(fake, tmp_path: Path) -> None:
    one = fake()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    one.answers(content(bytes(1 << 20)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with pytest.raises(pykvm.UsageError, match="x cannot be written: file too large"):
            one.guest.pull("/x", tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_the_kernels_messages(fake) -> None:
    one = fake()
    one.answers(content(b"<6>[0.0] Linux <1>\n<", b"3>[0.1] \xff\n"))
    assert one.guest.dmesg() == "[0.0] Linux <1>\n[0.1] \ufffd\n"


@pytest.mark.parametrize("call", ["push", "pull", "dmesg"])
def test_a_guest_that_dies_or_is_late_ends_a_transfer(fake, call: str) -> None:
    one = fake()
    arguments = {"push": (b"data", "/x"), "pull": ("/x",), "dmesg": ()}[call]
    with pytest.raises(pykvm.GuestTimeout, match="has not ended within 0 s"):
        getattr(one.guest, call)(*arguments, timeout=0)
    assert one.command().cancelled
    one.answers(lambda transfer: one.machine.finish(Outcome.panic("Kernel panic")))
    with pytest.raises(pykvm.GuestDied, match="Kernel panic, during "):
        getattr(one.guest, call)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((b"", "relative"), "path"),
        ((b"", "/a\0b"), "path"),
        ((b"", 3), "path"),
        ((b"", "/x", 0o10000), "mode"),
        ((b"", "/x", "755"), "mode"),
        ((3, "/x"), "source"),
    ],
)
def test_each_bad_argument_is_named(fake, arguments, name: str) -> None:
    one = fake()
    with pytest.raises(pykvm.UsageError, match=rf"^{name} cannot be "):
        one.guest.push(*arguments)
    assert one.client.commands == []


def test_a_guest_without_an_agent_says_so(fake) -> None:
    one = fake(BARE)
    for call, arguments in (("push", (b"", "/x")), ("pull", ("/x",)), ("dmesg", ())):
        with pytest.raises(pykvm.UsageError, match="has no agent, so it "):
            getattr(one.guest, call)(*arguments)


def test_a_file_that_is_too_long_for_memory_is_given_up_at_once(fake, monkeypatch) -> None:
    one = fake()
    monkeypatch.setattr("pykvm.guest.transfers.MOST_PULLED", 1 << 20)
    one.answers(lambda transfer: [transfer.events.data(bytes(1 << 19)) for _ in range(3)])
    for call in (lambda: one.guest.pull("/dev/zero"), one.guest.dmesg):
        with pytest.raises(pykvm.GuestError, match="is longer than 1 MiB"):
            call()
    assert [request.cancelled for request in one.client.commands] == [True, True]
