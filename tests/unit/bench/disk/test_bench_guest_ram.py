"""Guest RAM is found in a different process, in every kind of memory."""

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench_kernel import CODE, write_kernel

from pykvm.bench.disk import guest_ram
from pykvm.bench.disk.guest_ram import ALIGNMENT, Code, GuestRam, candidates
from pykvm.bench.disk.tools.process import Memory, ProcessView, Ram, parse_smaps
from pykvm.errors import HostError, PykvmError
from pykvm.memory.guest import address_of

MIB = 1 << 20
SIZE = 4 * MIB


def test_the_code_is_at_the_entry_point(tmp_path: Path):
    assert Code.of(write_kernel(tmp_path / "kernel")) == CODE
    with pytest.raises(PykvmError, match="no code at its entry"):
        Code.of(write_kernel(tmp_path / "kernel", entry=0x900000))


def test_ram_may_begin_where_a_mapping_does_and_at_huge_pages_in_it():
    maps = (
        "00201000-00901000 rw-p 00000000 00:00 0\n"
        "00a00000-00c00000 r--p 00000000 00:00 0 /lib\n"
        "00c00000-01400000 rw-s 00000000 00:01 7 /memfd:ram (deleted)\n"
    )
    assert list(candidates(maps, SIZE)) == [0x201000, 0x400000, 0xC00000, 0xE00000, 0x1000000]


def test_mappings_next_to_each_other_are_one():
    maps = (
        "00401000-00501000 rw-p 00000000 00:00 0\n"
        "00501000-00801000 rw-p 00000000 00:00 0\n"
        "00801000-00901000 rwxp 00000000 00:00 0 [heap]\n"
        "00901000-00a01000 ---p 00000000 00:00 0\n"
    )
    assert list(candidates(maps, SIZE)) == [0x401000, 0x501000]
    assert list(candidates(maps, SIZE + MIB)) == [0x401000]
    assert list(candidates("", SIZE)) == []


@contextmanager
def anonymous(length: int) -> Iterator[tuple[memoryview, int]]:
    """Private memory of this process in the midst of more of it, aligned, and its address."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, length + 2 * ALIGNMENT, flags) as whole, memoryview(whole) as view:
        skipped = ALIGNMENT + -address_of(view) % ALIGNMENT
        with view[skipped : skipped + length] as ram:
            yield ram, address_of(ram)


def set_apart(ram: memoryview, offset: int, length: int) -> None:
    """Let this part of ``ram`` be a mapping of its own."""
    whole = ram.obj
    assert isinstance(whole, mmap.mmap)
    with memoryview(whole) as view:
        offset += address_of(ram) - address_of(view)
    whole.madvise(mmap.MADV_DONTFORK, offset, length)


def check(start: int) -> None:
    """RAM is found at ``start``, and can be read and written."""
    ram = GuestRam(os.getpid(), SIZE, CODE)
    try:
        assert (ram.start, ram.end) == (start, start + SIZE)
        ram.write(12345, b"hello")
        assert ram.read(12344, 7) == b"\0hello\0"
    finally:
        ram.close()


def test_shared_memory():
    handle = os.memfd_create("test-ram")
    os.ftruncate(handle, SIZE)
    with mmap.mmap(handle, SIZE) as ram:
        ram[CODE.address : CODE.address + len(CODE.data)] = CODE.data
        with memoryview(ram) as view:
            address = address_of(view)
        check(address)
        assert os.pread(handle, 5, 12345) == b"hello"
    os.close(handle)


def test_an_aligned_part_of_private_memory():
    with anonymous(SIZE) as (ram, address):
        ram[CODE.address : CODE.address + len(CODE.data)] = CODE.data
        check(address)
        assert ram[12345:12350] == b"hello"


def test_memory_of_which_a_part_has_other_properties():
    with anonymous(SIZE) as (ram, address):
        ram[CODE.address : CODE.address + len(CODE.data)] = CODE.data
        set_apart(ram, MIB, MIB)
        check(address)


def test_no_page_comes_to_be_by_looking():
    with anonymous(SIZE) as (_, address), Path("/proc/self/pagemap").open("rb") as pages:
        with pytest.raises(LookupError, match="no RAM"):
            GuestRam(os.getpid(), SIZE, CODE)
        entries = struct.unpack(
            f"={SIZE // 4096}Q", os.pread(pages.fileno(), SIZE // 512, address // 512)
        )
        assert not any(entry >> 62 for entry in entries)


def test_memory_without_guest_ram():
    with anonymous(16 * MIB) as (ram, address):
        set_apart(ram, 0, len(ram))
        ram[:] = b"\1" * len(ram)
        view = ProcessView(os.getpid(), "none")
        found = view.memory(address + MIB, address + 2 * MIB)
        with_it, without = view.memory(0, 0).beyond, found.beyond
        # Looking takes some memory, too.
        assert 14 * MIB < with_it - without < 18 * MIB
        assert without > MIB
        assert found.ram.kind == "anonymous"
        assert 14 * MIB < found.ram.resident <= 16 * MIB
        assert 0 <= found.ram.large <= found.ram.resident


def smaps(*mappings: str) -> str:
    """Mappings of two pages and one huge page, under these first lines."""
    return "".join(
        f"{line}\nRss: 2056 kB\nPss: 2056 kB\nAnonHugePages: 2048 kB\nShared_Hugetlb: 0 kB\n"
        "VmFlags: rd wr\n"
        for line in mappings
    )


def test_ram_in_several_mappings():
    other = "00200000-00401000 rw-p 00000000 00:00 0"
    parts = [
        "00401000-00601000 rw-p 00000000 00:00 0 ",
        "00601000-00801000 rw-p 00000000 00:00 0 [anon:ram]",
    ]
    assert parse_smaps(smaps(other, *parts), 0x402000, 0x801000) == Memory(
        2056 << 10, Ram("anonymous", 4112 << 10, 4096 << 10)
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("/memfd:pykvm-ram (deleted)", "memfd"), ("/dev/hugepages/a b", "file")]
)
def test_ram_in_files(name: str, kind: str):
    text = smaps(f"00401000-00601000 rw-s 00000000 00:01 17   {name}")
    ram = parse_smaps(text.replace("Hugetlb: 0", "Hugetlb: 2048"), 0x401000, 0x601000).ram
    assert ram == Ram(kind, 4104 << 10, 4096 << 10)
    assert str(ram) == f"{kind} RAM, 4.0 of 4.0 MiB large pages"


VM = """
import mmap, sys
ram = mmap.mmap(-1, 4 << 20)
code = bytes.fromhex(sys.argv[2])
ram[int(sys.argv[1]):int(sys.argv[1]) + len(code)] = code
print(flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_gone():
    command = [sys.executable, "-c", VM, str(CODE.address), CODE.data.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        ram = GuestRam(child.pid, SIZE, CODE)
        assert ram.read(CODE.address, 8) == CODE.data[:8]
    with pytest.raises(ProcessLookupError):
        ram.read(0, 8)
    with pytest.raises(ProcessLookupError):
        ram.write(0, b"x")
    ram.close()
    with pytest.raises(OSError, match="No such"):
        GuestRam(child.pid, SIZE, CODE)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ("3\n", "ptrace_scope is 3; boot the host with it set to 1"),
        ("2\n", r"ptrace_scope is 2; set it to 1 \(sysctl\), or run bench as root"),
        ("1\n", "that it has started; allow this user to trace"),
    ],
)
def test_a_host_that_forbids_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str, words: str
):
    def refuse(*_: object) -> int:
        raise PermissionError

    (tmp_path / "scope").write_text(scope)
    monkeypatch.setattr(guest_ram, "_YAMA", tmp_path / "scope")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=words) as caught:
        GuestRam(1, SIZE, CODE)
    assert caught.value.exit_status == 77
