"""Flush order as the kernel sees it: one traced run, a disk for each cache mode.

With ``engine=sync`` a disk's thread makes all of its disk's calls, so their
order in the trace is the order in which it made them. A completion shows as the thread's write to
its eventfd, the interrupt; and the guest shows how far it came by what it
prints. For each disk the guest writes to four places:

=========  ==============================================================
FSYNC      four buffered writes and fsync
PLAIN      three direct writes, one at a time, and no flush
THROUGH    the same, after it has switched the disk to write-through
BACK       as FSYNC, after it has switched the disk to write-back
=========  ==============================================================
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
from patience import linux_patience, patience

from pykvm.devices.virtio_blk import CacheMode

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

BLOCK = 4096
FSYNC, PLAIN, THROUGH, BACK = (
    [BLOCK * block for block in range(first, first + count)]
    for first, count in ((0, 4), (16, 3), (32, 3), (48, 4))
)
MODES = list(CacheMode)
SYNCING = [mode for mode in CacheMode if mode.syncs]
WRITEBACK = [mode for mode in SYNCING if mode.writeback]
SCRIPT = """
    cd /sys/block/{disk}
    echo 4 >queue/max_sectors_kb
    put() {{ dd if=/dev/zero of=/dev/{disk} bs=4k "$@" 2>/dev/null; }}
    put seek=0 count=4 conv=fsync,notrunc; echo {disk}-fsync
    put seek=16 count=3 oflag=direct conv=notrunc
    echo "write through" >cache_type
    put seek=32 count=3 oflag=direct conv=notrunc; echo {disk}-through
    echo "write back" >cache_type
    put seek=48 count=4 conv=fsync,notrunc; echo {disk}-back
"""


@dataclass(frozen=True)
class Call:
    """One system call. ``begin`` and ``end`` are its lines in the trace."""

    thread: int
    name: str
    arguments: str
    result: int
    begin: int
    end: int

    @property
    def file(self) -> str:
        """What its descriptor is: a path, or the like of ``anon_inode:[eventfd]``."""
        found = re.match(r"\d+<(.*?)>", self.arguments)
        return found[1] if found else ""

    @property
    def offset(self) -> int:
        """Where a vectored read or write begins."""
        found = re.search(r"\], \d+, (\d+)(, 0)?$", self.arguments)
        assert found, self
        return int(found[1])

    @property
    def writes(self) -> bool:
        return self.name.startswith("pwrite")


def parse(lines: list[str]) -> Iterator[Call]:
    """The finished calls of ``strace -f``, in the order of their ends."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        thread, _, text = line.partition(" ")
        text = text.strip()
        begin = number
        if text.endswith("<unfinished ...>"):
            begun[thread] = number, text.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            begin, start = begun.pop(thread)
            text = start + resumed[1]
        if call := re.fullmatch(r"(\w+)\((.*)\)\s+= (-?\d+).*", text):
            yield Call(int(thread), call[1], call[2], int(call[3]), begin, number)


class Trace:
    """The calls of one run. ``devices`` has the name of each mode's disk in the guest."""

    def __init__(self, lines: list[str], devices: dict[CacheMode, str]) -> None:
        self.calls = list(parse(lines))
        self.devices = devices

    def open_flags(self, mode: CacheMode) -> list[str]:
        return [
            call.arguments.rpartition(", ")[2]
            for call in self.calls
            if call.name == "openat" and f"{mode.value}.img" in call.arguments and call.result >= 0
        ]

    def of(self, mode: CacheMode) -> "Disk":
        if mode not in self.devices:
            pytest.skip("no O_DIRECT where temporary files are")
        return Disk(self, mode)

    def printed(self, text: str) -> Call:
        """The first write of ``text`` to standard output."""
        return next(c for c in self.calls if c.name == "write" and f'"{text}' in c.arguments)


class Disk:
    """One disk's calls: those of its ``thread``, interrupts among them, and ``elsewhere``."""

    def __init__(self, trace: Trace, mode: CacheMode) -> None:
        self.trace = trace
        self.device = trace.devices[mode]
        mine = [call for call in trace.calls if call.file.endswith(f"/{mode.value}.img")]
        (number,) = {call.thread for call in mine if call.writes}
        self.elsewhere = [call for call in mine if call.thread != number]
        self.thread = [
            call
            for call in trace.calls
            if call.thread == number and (call in mine or "eventfd" in call.file)
        ]

    def writes_to(self, place: list[int]) -> list[Call]:
        """The writes to ``place``, of which there is one for each block."""
        writes = [call for call in self.thread if call.writes and call.offset in place]
        assert sorted(call.offset for call in writes) == place
        assert all(call.result == BLOCK for call in writes)
        return writes

    def after(self, call: Call) -> list[Call]:
        """What the thread does after ``call``."""
        return self.thread[self.thread.index(call) + 1 :]

    def syncs_between(self, first: Call, last: Call) -> list[Call]:
        return [call for call in self.after(first) if is_sync(call) and call.begin < last.begin]

    def printed(self, what: str) -> Call:
        return self.trace.printed(f"{self.device}-{what}")

    def assert_durable(self, place: list[int]) -> None:
        """Between each write to ``place`` and its completion it was synced."""
        writes = self.writes_to(place)
        for write in writes:
            assert is_sync(self.after(write)[0]), write
        # The driver may find later results while it handles the interrupt for the first, but the
        # guest does not go on to other places without any.
        until = takewhile(
            lambda call: not call.writes or call.offset in place, self.after(writes[0])
        )
        assert any(map(is_interrupt, until))

    def assert_flushed(self, place: list[int], before: Call) -> None:
        """All of ``place`` is written before it is synced, and synced before the guest goes on."""
        writes = self.writes_to(place)
        assert self.syncs_between(writes[0], writes[-1]) == []
        sync = next(call for call in self.after(writes[-1]) if is_sync(call))
        completion = self.after(sync)[0]
        assert is_interrupt(completion)
        assert sync.end < completion.begin < before.begin


def is_sync(call: Call) -> bool:
    return call.name == "fdatasync" and call.result == 0


def is_interrupt(call: Call) -> bool:
    return call.name == "write" and "eventfd" in call.file


def strace_problem(folder: Path) -> str:
    """Why nothing can be traced here, or an empty string."""
    if not shutil.which("strace"):
        return "strace is missing"
    command = ["strace", "-f", "--seccomp-bpf", "-o", str(folder / "probe"), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience())
    return f"strace does not work here: {done.stderr.strip()}" if done.returncode else ""


def has_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("flush")
    if problem := strace_problem(folder):
        if os.environ.get("PYKVM_REQUIRE_KVM") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    devices: dict[CacheMode, str] = {}
    disks = []
    for mode in MODES:
        path = folder / f"{mode.value}.img"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        if mode.direct and not has_direct(path):
            continue
        devices[mode] = f"vd{'abcde'[len(devices)]}"
        disks += ["--disk", f"{path},cache={mode.value},merge=off,engine=sync"]
    names = "openat,preadv,preadv2,pread64,pwritev,pwritev2,pwrite64,fdatasync,fsync,write"
    output = folder / "trace"
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "32", "-e", f"trace={names}"]
    command += ["-o", str(output), sys.executable, "-m", "pykvm", "boot", "guest"]
    script = "".join(SCRIPT.format(disk=disk) for disk in devices.values())
    command += ["--timeout", str(linux_patience()), *disks, "--exec", script]
    done = subprocess.run(command, capture_output=True, check=False, timeout=linux_patience(170))
    assert done.returncode == 0, done
    return Trace(output.read_text().splitlines(), devices)


@pytest.mark.parametrize("mode", MODES)
def test_o_direct_where_the_mode_says_so(trace: Trace, mode: CacheMode) -> None:
    trace.of(mode)
    (flags,) = trace.open_flags(mode)
    assert ("O_DIRECT" in flags) == mode.direct
    assert "SYNC" not in flags


@pytest.mark.parametrize("mode", WRITEBACK)
def test_fsync_waits_for_a_sync_after_all_writes(trace: Trace, mode: CacheMode) -> None:
    disk = trace.of(mode)
    disk.assert_flushed(FSYNC, disk.printed("fsync"))


@pytest.mark.parametrize("mode", WRITEBACK)
def test_write_back_completes_writes_without_a_sync(trace: Trace, mode: CacheMode) -> None:
    disk = trace.of(mode)
    writes = disk.writes_to(PLAIN)
    assert disk.syncs_between(writes[0], writes[-1]) == []
    assert all(is_interrupt(disk.after(write)[0]) for write in writes)


@pytest.mark.parametrize("mode", [mode for mode in SYNCING if not mode.writeback])
def test_write_through_completes_no_write_without_a_sync(trace: Trace, mode: CacheMode) -> None:
    disk = trace.of(mode)
    disk.assert_durable(FSYNC)
    disk.assert_durable(PLAIN)


@pytest.mark.parametrize("mode", SYNCING)
def test_the_guest_switches_to_write_through(trace: Trace, mode: CacheMode) -> None:
    """What it wrote before is synced at the switch, by the vCPU; then each write is."""
    disk = trace.of(mode)
    disk.assert_durable(THROUGH)
    switches = [call for call in disk.elsewhere if is_sync(call)]
    assert len(switches) == mode.writeback
    for switch in switches:
        assert disk.writes_to(PLAIN)[-1].end < switch.begin
        assert switch.end < disk.writes_to(THROUGH)[0].begin


@pytest.mark.parametrize("mode", SYNCING)
def test_the_guest_switches_to_write_back(trace: Trace, mode: CacheMode) -> None:
    disk = trace.of(mode)
    disk.assert_flushed(BACK, disk.printed("back"))


def test_unsafe_never_syncs(trace: Trace) -> None:
    disk = trace.of(CacheMode.UNSAFE)
    for place in (FSYNC, PLAIN, THROUGH, BACK):
        disk.writes_to(place)
    assert not any("sync" in call.name for call in [*disk.thread, *disk.elsewhere])
    assert disk.printed("back")
