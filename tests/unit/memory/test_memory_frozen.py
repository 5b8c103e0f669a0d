"""Guest memory that is frozen while it is in use, and put back."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.memory import GuestMemory, changed
from pykvm.memory import guest as guest_memory
from pykvm.memory.changed import changed_ranges
from pykvm.memory.frozen import Copy, FrozenMemory
from pykvm.memory.guest import MIB

SIZE = 2 * MIB
PAGE = mmap.PAGESIZE
PAGES = SIZE // PAGE

Opener = Callable[..., GuestMemory]


@pytest.fixture
def new() -> Iterator[Opener]:
    """Makes guest memory, and closes it at the end."""
    made = []

    def make(**options) -> GuestMemory:
        made.append(GuestMemory(SIZE, **options))
        return made[-1]

    yield make
    for memory in made:
        memory.close()


@pytest.fixture(params=["anonymous", "frozen"])
def memory(request: pytest.FixtureRequest, new: Opener) -> GuestMemory:
    """Memory of each kind, with something in page 3."""
    if request.param == "frozen":
        first = new()
        first.ram.write(3 * PAGE, b"before")
        with_parent = snapshot(first)
        made = new(origin=with_parent)
        with_parent.close()
        return made
    made = new()
    made.ram.write(3 * PAGE, b"before")
    return made


def snapshot(memory: GuestMemory) -> FrozenMemory:
    copy = memory.begin_copy()
    try:
        return memory.freeze(copy)
    finally:
        copy.close()


def content(frozen: FrozenMemory) -> bytes:
    with frozen.bytes as view:
        return bytes(view)


def test_frozen_memory_holds_the_content_of_the_moment(memory: GuestMemory):
    memory.ram.write(5 * PAGE + 1, b"x")
    expected = bytes(memory.ram.bytes)
    frozen = snapshot(memory)
    try:
        assert content(frozen) == expected
        memory.ram.write(5 * PAGE, b"after")
        memory.ram.write(3 * PAGE, b"after!")
        assert content(frozen) == expected
        assert memory.ram.read(5 * PAGE, 5) == b"after"
    finally:
        frozen.close()
    assert memory.ram.read(3 * PAGE, 6) == b"after!"
    assert memory.fd == -1


def test_what_changes_after_the_first_copy_is_frozen_too(memory: GuestMemory):
    memory.ram.write(0, b"1")
    copy = memory.begin_copy()
    memory.ram.write(0, b"2")
    memory.ram.write(3 * PAGE, bytes(6))
    memory.ram.write(9 * PAGE, b"3")
    frozen = memory.freeze(copy)
    copy.close()
    try:
        assert content(frozen) == bytes(memory.ram.bytes)
        assert memory.ram.read(0, 1) + memory.ram.read(9 * PAGE, 1) == b"23"
    finally:
        frozen.close()


def test_nobody_can_change_frozen_memory(memory: GuestMemory):
    frozen = snapshot(memory)
    try:
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(frozen.fd, b"x", 0)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(frozen.fd, 0)
        with pytest.raises(OSError, match="not permitted"):
            mmap.mmap(frozen.fd, SIZE, mmap.MAP_SHARED)
    finally:
        frozen.close()


def test_a_copy_is_closed_even_while_its_pages_are_in_use(new: Opener):
    """As they are for a moment, whenever a running guest or a device reads one."""
    memory = new()
    copy = memory.begin_copy()
    frozen = memory.freeze(copy)
    with mmap.mmap(frozen.fd, SIZE, mmap.MAP_SHARED):
        copy.close()
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(frozen.fd, b"x", 0)
    frozen.close()


def test_the_addresses_of_memory_stay(memory: GuestMemory):
    """KVM and the devices keep them."""
    address, view = memory.address, memory.ram.bytes
    for _ in range(2):
        frozen = snapshot(memory)
        memory.put_back(frozen)
        frozen.close()
    view[7] = 9
    assert memory.address == address
    assert memory.ram.read(7, 1) == b"\x09"


def test_a_chain_of_snapshots_and_every_way_back(memory: GuestMemory):
    random, taken = Random(1), []
    for step in range(4):
        for _ in range(30):
            memory.ram.write(random.randrange(PAGES) * PAGE + step, random.randbytes(3))
        frozen = snapshot(memory)
        taken.append((frozen, content(frozen)))
    for frozen, expected in (taken[i] for i in (0, 3, 3, 1, 2, 2, 0)):
        memory.ram.write(random.randrange(PAGES) * PAGE, b"lost")
        memory.put_back(frozen)
        assert bytes(memory.ram.bytes) == expected == content(frozen)
    for frozen, _ in taken:
        frozen.close()
    assert bytes(memory.ram.bytes) == taken[0][1]


@pytest.mark.parametrize("limit", [0, guest_memory.COPY_BACK])
def test_few_pages_are_copied_back_and_many_are_dropped(
    new: Opener, monkeypatch: pytest.MonkeyPatch, limit: int
):
    monkeypatch.setattr(guest_memory, "COPY_BACK", limit)
    memory = new()
    frozen = snapshot(memory)
    memory.ram.write(PAGE, b"x")
    memory.put_back(frozen)
    frozen.close()
    assert not any(memory.ram.bytes)
    left = changed_ranges(memory.address, SIZE)
    assert left == ([(PAGE, 2 * PAGE)] if limit else [])


def test_memories_of_one_snapshot_share_pages_but_no_writes(memory: GuestMemory, new: Opener):
    frozen = snapshot(memory)
    others = [new(origin=frozen) for _ in range(3)]
    frozen.close()
    for number, other in enumerate(others):
        assert other.kind == "a private mapping of a snapshot"
        assert other.ram.read(3 * PAGE, 6) == b"before"
        other.ram.write(3 * PAGE, b"%06d" % number)
    for number, other in enumerate(others):
        assert other.ram.read(3 * PAGE, 6) == b"%06d" % number
        assert changed_ranges(other.address, SIZE) == [(3 * PAGE, 4 * PAGE)]
    assert memory.ram.read(3 * PAGE, 6) == b"before"


def test_descriptors_are_not_lost(memory: GuestMemory, new: Opener):
    before = os.listdir("/proc/self/fd")
    for _ in range(2):
        frozen = snapshot(memory)
        other = new(origin=frozen)
        other.put_back(frozen)
        other.close()
        frozen.close()
        frozen.close()
    # The memory has become a mapping of frozen memory, which keeps one.
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


@pytest.mark.parametrize("name", ["memfd_create", "pwrite"])
def test_a_host_without_memory_changes_nothing(
    new: Opener, monkeypatch: pytest.MonkeyPatch, name: str
):
    memory = new()
    memory.ram.write(0, b"x")
    before = os.listdir("/proc/self/fd")

    def fails(*arguments) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match="allocate memory"):
        memory.begin_copy()
    monkeypatch.undo()
    assert os.listdir("/proc/self/fd") == before
    assert memory.ram.read(0, 1) == b"x"


# -- the changed pages -----------------------------------------------------------


@pytest.fixture(params=["scan", "read"])
def ranges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """changed_ranges as of this kernel, and as of a kernel that cannot list changed pages."""
    if request.param == "read":

        def refuses(*arguments) -> int:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

        monkeypatch.setattr(changed.fcntl, "ioctl", refuses)
    elif not can_scan():
        pytest.skip("this kernel cannot list changed pages")
    return changed_ranges


def can_scan() -> bool:
    request = bytearray(changed._SCAN.pack(changed._SCAN.size, *[0] * 11))
    with open("/proc/self/pagemap", "rb") as file:
        try:
            fcntl.ioctl(file, changed._PAGEMAP_SCAN, request)
        except OSError as error:
            return error.errno != errno.ENOTTY
    return True


def pages_of(found: list[tuple[int, int]]) -> list[int]:
    return [at // PAGE for start, end in found for at in range(start, end, PAGE)]


@settings(max_examples=60)
@given(pages=st.sets(st.integers(0, 63)), looked=st.sets(st.integers(0, 63)))
def test_the_changed_pages_are_those_that_were_written(pages: set[int], looked: set[int]):
    copy = Copy(64 * PAGE)
    copy.take(memoryview(b"x" * 64 * PAGE), [(PAGE, 9 * PAGE)])
    frozen = copy.freeze()
    copy.close()
    with mmap.mmap(frozen.fd, 64 * PAGE, mmap.MAP_PRIVATE) as private, memoryview(private) as view:
        start = guest_memory.address_of(view)
        assert sum(view[page * PAGE] for page in looked) % ord("x") == 0
        for page in pages:
            view[page * PAGE + 9] = 1
        for find in (changed._scan, changed._read) if can_scan() else (changed._read,):
            with open("/proc/self/pagemap", "rb") as file:
                assert pages_of(list(find(file.fileno(), start, 64 * PAGE))) == sorted(pages)
    frozen.close()


def test_more_ranges_than_one_answer_holds(ranges, new: Opener, monkeypatch: pytest.MonkeyPatch):
    """Linux itself collects 512 at a time, and then says wrongly where it stopped."""
    frozen = snapshot(new())
    memory = GuestMemory(16 * MIB, thp=False)
    try:
        expected = list(range(0, 16 * MIB // PAGE, 2))
        for page in expected:
            memory.ram.bytes[page * PAGE] = 1
        for most in (1, 100, 512, 513, 1024, 2047, 2048, 4096):
            monkeypatch.setattr(changed, "_MOST_FOUND", most)
            assert pages_of(ranges(memory.address, memory.size)) == expected
    finally:
        memory.close()
        frozen.close()
