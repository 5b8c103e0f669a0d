"""Guest RAM: nothing outside it can be reached, whatever address a guest gives."""

import os
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import UsageError
from pykvm.memory import GuestAddressError, GuestMemory, Ram, Region
from pykvm.memory.guest import GIB, HOLE_END, HOLE_START, MAX_SIZE, MIB, layout
from pykvm.memory.large_pages import LARGE_PAGE, SETTING, has_large_pages

# Two regions with a hole, scaled down: buffer 0-0x1000 and 0x1000-0x1800.
SMALL = (Region(0, 0x1000, 0), Region(0x4000, 0x800, 0x1000))
BUFFER = 0x1800

addresses = st.one_of(
    st.integers(-(1 << 70), 1 << 70),
    st.integers(-16, 0x5000),
    st.sampled_from([0, 0xFFF, 0x1000, 0x3FFF, 0x4000, 0x47FF, 0x4800, 2**32, 2**64 - 1, 2**64]),
)
lengths = st.one_of(st.integers(-(1 << 70), 1 << 70), st.integers(-4, 0x1900))


def in_ram(address: int) -> int | None:
    """The model: where one byte lies in the buffer."""
    if 0 <= address < 0x1000:
        return address
    if 0x4000 <= address < 0x4800:
        return address - 0x4000 + 0x1000
    return None


def small() -> Ram:
    return Ram(bytearray(BUFFER), SMALL)


@given(addresses, lengths)
def test_translate_agrees_with_a_byte_by_byte_model(address: int, length: int) -> None:
    offset = small().translate(address, length)
    if length > BUFFER or length < 0:
        assert offset == -1
    elif length:
        places = [in_ram(address + index) for index in range(length)]
        whole = None not in places and places == list(
            range(places[0] or 0, (places[0] or 0) + length)
        )
        assert offset == (places[0] if whole else -1)
    elif offset >= 0:
        assert in_ram(address) == offset or in_ram(address - 1) == offset - 1


@given(addresses, lengths)
def test_a_range_inside_stays_within_the_buffer(address: int, length: int) -> None:
    offset = small().translate(address, length)
    assert offset == -1 or 0 <= offset <= offset + length <= BUFFER


@given(addresses, st.binary(min_size=1, max_size=64))
def test_write_then_read_or_neither(address: int, data: bytes) -> None:
    ram = small()
    before = bytes(ram.bytes)
    if ram.translate(address, len(data)) < 0:
        with pytest.raises(GuestAddressError):
            ram.write(address, data)
        with pytest.raises(GuestAddressError):
            ram.read(address, len(data))
        assert bytes(ram.bytes) == before
    else:
        ram.write(address, data)
        assert ram.read(address, len(data)) == data
        assert sum(a != b for a, b in zip(ram.bytes, before, strict=True)) <= len(data)


def test_a_range_over_the_hole_is_outside() -> None:
    ram = small()
    assert ram.translate(0xFFF, 1) == 0xFFF
    assert ram.translate(0xFFF, 2) == -1
    assert ram.translate(0, 0x4001) == -1
    assert ram.translate(0x3FFF, 2) == -1
    assert ram.translate(0x4000, 0x800) == 0x1000
    assert ram.translate(0x1000, 0) == 0x1000
    assert ram.translate(0x1001, 0) == -1


def test_no_wrap_around_at_two_to_the_64() -> None:
    ram = small()
    assert ram.translate(2**64, 1) == -1
    assert ram.translate(2**64 - 1, 2) == -1
    assert ram.translate(4, 2**64) == -1
    assert ram.translate(2**64 - 4, 2**64) == -1


def test_casts_show_the_same_memory() -> None:
    ram = Ram.flat(64, start=0x1000)
    ram.write(0x1008, (0x1122334455667788).to_bytes(8, "little"))
    assert ram.u64[1] == 0x1122334455667788
    assert ram.u32[2] == 0x55667788
    assert ram.u16[7] == 0x1122
    ram.u16[4] = 0xABCD
    assert ram.read(0x1008, 2) == b"\xcd\xab"


@pytest.mark.parametrize(
    ("buffer", "regions"),
    [
        (bytearray(12), [Region(0, 8, 0)]),
        (memoryview(bytes(16)), [Region(0, 16, 0)]),
        (bytearray(16), [Region(0, 17, 0)]),
        (bytearray(16), [Region(0, 8, 9)]),
        (bytearray(16), [Region(0, 8, -1)]),
        (bytearray(16), [Region(0, 0, 0)]),
    ],
)
def test_an_impossible_ram_is_refused(
    buffer: bytearray | memoryview, regions: list[Region]
) -> None:
    with pytest.raises(ValueError, match=r"region|buffer"):
        Ram(buffer, regions)


def test_any_item_size_of_the_buffer_is_seen_as_bytes() -> None:
    words = array("Q", [1, 2])
    ram = Ram(memoryview(words), [Region(0, 16, 0)])
    assert ram.read(8, 1) == b"\x02"
    ram.release()


@given(st.integers(1, MAX_SIZE // 4096).map(lambda pages: pages * 4096))
def test_layout_keeps_the_hole_free(size: int) -> None:
    regions = layout(size)
    assert sum(region.size for region in regions) == size
    assert [region.offset for region in regions] == [0, HOLE_START][: len(regions)]
    assert all(region.end <= HOLE_START or region.start >= HOLE_END for region in regions)


def test_layout_at_the_edge_of_the_hole() -> None:
    assert layout(3 * GIB) == [Region(0, 3 * GIB, 0)]
    assert layout(3 * GIB + 4096)[1] == Region(4 * GIB, 4096, 3 * GIB)


@pytest.mark.parametrize("thp", [False, True])
def test_guest_memory_begins_where_a_large_page_can(thp: bool) -> None:
    memory = GuestMemory(5 * MIB, thp=thp)
    try:
        assert memory.fd == -1
        assert memory.address % LARGE_PAGE == 0
        assert memory.size == 5 * MIB == memory.regions[0].size
        memory.ram.write(5 * MIB - 4, b"last")
        assert memory.ram.read(5 * MIB - 4, 4) == b"last"
        assert memory.large_pages == (thp and has_large_pages())
        assert memory.kind.startswith("anonymous memory")
    finally:
        memory.close()


needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="the kernel tells nothing of mappings"
)


@needs_smaps
@pytest.mark.skipif(not Path(SETTING).exists(), reason="the kernel has no large pages")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("thp", "flag"), [(True, "hg"), (False, "nh")])
def test_the_host_is_asked_for_large_pages_or_for_none(shared: bool, thp: bool, flag: str) -> None:
    memory = GuestMemory(5 * MIB, shared=shared, thp=thp)
    try:
        assert flag in mapping(memory.address)["VmFlags"].split()
    finally:
        memory.close()


@pytest.mark.parametrize(
    ("setting", "shared", "expected"),
    [
        ("always [madvise] never", False, True),
        ("[always] madvise never", False, True),
        ("always madvise [never]", False, False),
        ("always within_size advise [never] deny force", True, False),
        ("always within_size [advise] never deny force", True, True),
        ("always within_size advise never [deny] force", True, False),
        (None, False, False),
    ],
)
def test_the_settings_of_the_host_decide_about_large_pages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    shared: bool,
    expected: bool,
) -> None:
    path = tmp_path / "setting"
    if setting is not None:
        path.write_text(setting + "\n")
    name = "SETTING_SHARED" if shared else "SETTING"
    monkeypatch.setattr(f"pykvm.memory.large_pages.{name}", str(path))
    assert has_large_pages(shared) == expected


FORK = """
import os
from pykvm.memory import GuestMemory
memory = GuestMemory(4 << 20)
memory.ram.write(0, b"mine")
child = os.fork()
if not child:
    assert memory.ram.read(0, 4) == bytes(4)
    memory.close()
    raise SystemExit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert memory.ram.read(0, 4) == b"mine"
"""


def test_a_forked_child_has_empty_guest_memory_and_may_close_it() -> None:
    """Otherwise each page would be copied at the first write, and differ from the disk's."""
    subprocess.run([sys.executable, "-c", FORK], check=True)


@needs_smaps
def test_guest_memory_uses_no_memory_before_it_is_touched() -> None:
    memory = GuestMemory(64 * MIB)
    try:
        before = resident(memory.address)
        memory.ram.bytes[0] = 1
        assert before < resident(memory.address) <= before + LARGE_PAGE
        assert before < 64 * MIB
    finally:
        memory.close()


def mapping(address: int) -> dict[str, str]:
    """The fields in /proc/self/smaps of the mapping that contains ``address``."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            start, end = (int(word, 16) for word in line.split(" ")[0].split("-"))
            inside = start <= address < end
        elif inside:
            found[name] = rest.strip()
    return found


def resident(address: int) -> int:
    """Bytes of it that the host has given."""
    return int(mapping(address)["Rss"].split()[0]) << 10


def test_shared_guest_memory_is_a_memfd_that_a_second_mapping_sees() -> None:
    memory = GuestMemory(2 * MIB, shared=True)
    try:
        memory.ram.write(0x1234, b"hello")
        assert os.pread(memory.fd, 5, 0x1234) == b"hello"
        os.pwrite(memory.fd, b"there", 0x5678)
        assert memory.ram.read(0x5678, 5) == b"there"
        assert memory.address % 4096 == 0
        assert memory.size == 2 * MIB == memory.regions[0].size
        assert not os.get_inheritable(memory.fd)
        assert memory.kind.startswith("a memfd")
    finally:
        memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.fd)


def test_guest_memory_above_the_hole_can_be_used() -> None:
    memory = GuestMemory(3 * GIB + MIB)
    try:
        memory.ram.write(HOLE_END + MIB - 4, b"last")
        assert memory.ram.read(HOLE_END + MIB - 4, 4) == b"last"
        with pytest.raises(GuestAddressError):
            memory.ram.read(HOLE_END - 1, 1)
        with pytest.raises(GuestAddressError):
            memory.ram.read(HOLE_START - 1, 2)
    finally:
        memory.close()


@pytest.mark.parametrize("size", [0, -4096, 4096, MIB - 4096, MIB + 1, MAX_SIZE + 4096, 1 << 70])
def test_impossible_sizes_are_usage_errors(size: int) -> None:
    with pytest.raises(UsageError, match="MiB"):
        GuestMemory(size)


def test_address_is_the_mappings() -> None:
    import ctypes

    memory = GuestMemory(MIB)
    try:
        memory.ram.write(0, b"pykvm\0")
        assert ctypes.string_at(memory.address) == b"pykvm"
    finally:
        memory.close()


def test_a_kept_view_outlives_the_memory() -> None:
    memory = GuestMemory(1 << 20)
    with memoryview(memory.ram.bytes) as kept, memoryview(kept) as inner:
        inner[0] = 7
        memory.close()
        assert kept[0] == 7
