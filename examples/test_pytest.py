"""Tests with pytest: one guest for all of them, and each begins where the guest was prepared::

pytest examples/test_pytest.py
"""

from collections.abc import Iterator

import pytest

import pykvm


@pytest.fixture(scope="module")
def prepared() -> Iterator[pykvm.Guest]:
    with pykvm.boot() as guest:
        guest.run("mke2fs -q -t ext4 -F /dev/vda && mount /dev/vda /mnt")
        guest.snapshot()
        yield guest


@pytest.fixture
def guest(prepared: pykvm.Guest) -> pykvm.Guest:
    prepared.reset()
    return prepared


def test_a_new_filesystem_is_empty(guest: pykvm.Guest) -> None:
    assert guest.run("ls /mnt").text == "lost+found"


def test_an_error_of_the_disk_reaches_the_program(guest: pykvm.Guest) -> None:
    rule = guest.disks[0].faults.add(pykvm.Fault(operation="write", errno="EIO"))
    result = guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct", check=False)
    guest.disks[0].faults.remove(rule)
    assert result.status == 1
    assert b"I/O error" in result.stderr


def test_a_panic_disturbs_no_other_test(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.GuestDied) as death:
        guest.run("echo c > /proc/sysrq-trigger")
    assert death.value.outcome.kind is pykvm.OutcomeKind.PANIC


def test_the_guest_is_as_it_was(guest: pykvm.Guest) -> None:
    assert guest.run("ls /mnt").text == "lost+found"
