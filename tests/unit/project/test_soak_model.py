"""The model of a disk with many requests under way, which random drivers are checked against."""

import pytest

from soak.model import SECTOR, ZEROS, Access, Change, Model, explains

OLD, A, B, C = (letter * SECTOR for letter in (b"o", b"a", b"b", b"c"))


class Disk:
    """One sector that holds OLD. Requests are in batches of their own, unless one is given."""

    def __init__(self) -> None:
        self.model = Model(OLD)
        self.batch = 100

    def read(self, batch: int = 0, place: int = 0) -> Access:
        return self.model.issue(self._batch(batch), place)

    def write(self, content: bytes, batch: int = 0, place: int = 0, sure: bool = True) -> Access:
        change = Change(0, [content], sure)
        return self.model.issue(self._batch(batch), place, [change])

    def _batch(self, batch: int) -> int:
        self.batch += 1
        return batch or self.batch

    def may(self, reader: Access | None = None) -> set[bytes]:
        return set(self.model.possible(reader or self.model.observer(), 0))


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_a_write_may_have_happened_until_it_is_answered(disk: Disk) -> None:
    write = disk.write(A)
    assert disk.may() == {OLD, A}
    disk.model.succeed(write)
    assert disk.may() == {A}


def test_an_earlier_read_may_find_replaced_data(disk: Disk) -> None:
    write = disk.write(A)
    read = disk.read()
    disk.model.succeed(write)
    assert disk.may(read) == {OLD, A}
    assert disk.may(disk.read()) == {A}


def test_concurrent_writes_may_have_happened_in_any_order(disk: Disk) -> None:
    first, second = disk.write(A), disk.write(B)
    disk.model.succeed(second)
    disk.model.succeed(first)
    assert disk.may() == {A, B}
    disk.model.succeed(disk.write(C))
    assert disk.may() == {C}


def test_overlapping_requests_of_a_batch_keep_their_order(disk: Disk) -> None:
    before = disk.read(batch=1, place=0)
    first = disk.write(A, batch=1, place=1)
    between = disk.read(batch=1, place=2)
    second = disk.write(B, batch=1, place=3)
    assert disk.may(before) == {OLD}
    disk.model.succeed(first)
    assert disk.may(between) == {A}
    disk.model.succeed(second)
    assert disk.may(between) == {A}
    assert disk.may() == {B}


def test_a_write_that_failed_may_have_happened_but_does_not_any_more(disk: Disk) -> None:
    disk.model.fail(disk.write(A))
    assert disk.may() == {OLD, A}
    disk.model.succeed(disk.write(B))
    assert disk.may() == {B}


def test_a_write_that_was_refused_has_not_happened(disk: Disk) -> None:
    disk.model.refuse(disk.write(A))
    assert disk.may() == {OLD}


def test_a_discard_may_leave_the_old_data(disk: Disk) -> None:
    disk.model.succeed(disk.write(ZEROS, sure=False))
    assert disk.may() == {OLD, ZEROS}


def test_data_found_at_rest_stays(disk: Disk) -> None:
    disk.model.fail(disk.write(A))
    disk.model.settle(0, A)
    assert disk.may() == {A}


def test_cut_sectors_are_zeros_when_the_disk_grows_again(disk: Disk) -> None:
    disk.model.resizing(2)
    disk.model.resized()
    write = disk.model.issue(1, 0, [Change(1, [A])])
    disk.model.succeed(write)
    read = disk.read()
    for capacity in (1, 2):
        disk.model.resizing(capacity)
        disk.model.resized()
    assert set(disk.model.possible(disk.model.observer(), 1)) == {ZEROS}
    assert A in disk.model.possible(read, 1)
    assert (read.low, read.high) == (1, 2)


def test_each_byte_may_come_from_a_different_version() -> None:
    mixed = A[:100] + B[100:]
    assert explains([A, B], mixed)
    assert not explains([A, C], mixed)
    assert not explains([A], mixed)
    assert explains([A], A)
