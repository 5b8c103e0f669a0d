"""The manifest of a saved machine: every entry is checked before anything is built from it."""

import os
from pathlib import Path

import pytest

from pykvm.machine.snapshot import MachineSnapshot
from pykvm.memory import GuestMemory
from pykvm.memory.guest import MAX_SIZE, MIN_SIZE
from pykvm.snapshot import writing
from pykvm.snapshot.fields import SnapshotError
from pykvm.x86.mptable import MAX_CPUS

MANIFEST = {
    "id": "01234567-89ab-4cde-8f01-23456789abcd",
    "pykvm": "1.0",
    "saved_at": 1_900_000_000,
    "description": "a kernel",
    "guest": bytes(32),
    "cpus": 2,
    "memory": MIN_SIZE,
    "assisted": False,
    "cpuid": bytes(32),
    "disks": 0,
    "failed": False,
    "unseen_disks": False,
}


def write(place: Path, manifest: dict[str, object], ram: int = MIN_SIZE) -> None:
    writing.write(place, manifest, {}, lambda file: os.ftruncate(file, ram))


def refuse(place: Path, words: str) -> None:
    """The snapshot is refused, and no file stays open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SnapshotError, match=words):
        MachineSnapshot.open(place)
    assert os.listdir("/proc/self/fd") == before


def test_a_manifest_says_what_the_machine_is(tmp_path: Path):
    write(tmp_path / "saved", MANIFEST)
    saved = MachineSnapshot.open(tmp_path / "saved")
    try:
        assert (saved.cpus, saved.memory) == (2, MIN_SIZE)
        assert (saved.id, saved.version) == (MANIFEST["id"], "1.0")
        assert (saved.description, saved.saved_at) == ("a kernel", 1_900_000_000)
    finally:
        saved.close()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("id", 5),
        ("id", "x" * 37),
        ("id", "01234567-89ab-4cde-8f01-23456789abcg"),
        ("id", "0123456789ab4cde8f0123456789abcd"),
        ("pykvm", None),
        ("saved_at", -1),
        ("saved_at", 1 << 41),
        ("description", "x" * 4097),
        ("description", b"bytes"),
        ("guest", bytes(33)),
        ("cpus", 0),
        ("cpus", MAX_CPUS + 1),
        ("cpus", True),
        ("cpus", 1.5),
        ("memory", MIN_SIZE - 1),
        ("memory", MAX_SIZE + 1),
        ("assisted", 1),
        ("disks", -1),
        ("disks", 31),
        ("failed", "no"),
        ("unseen_disks", 1),
        ("cpuid", bytes(31)),
        ("cpuid", "00" * 32),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(tmp_path: Path, entry: str, value: object):
    write(tmp_path / "saved", MANIFEST | {entry: value})
    refuse(tmp_path / "saved", f"part manifest makes no sense: {entry} ")


@pytest.mark.parametrize("entry", list(MANIFEST))
def test_a_missing_entry_is_refused(tmp_path: Path, entry: str):
    write(tmp_path / "saved", {name: MANIFEST[name] for name in MANIFEST if name != entry})
    refuse(tmp_path / "saved", f"{entry} is missing")


def test_an_unknown_entry_is_refused(tmp_path: Path):
    write(tmp_path / "saved", MANIFEST | {"nets": 1})
    refuse(tmp_path / "saved", "nets means nothing here")


@pytest.mark.parametrize("ram", [0, MIN_SIZE - 1, MIN_SIZE + 4096])
def test_memory_of_another_size_is_refused(tmp_path: Path, ram: int):
    """A page of a mapping that the file does not have would kill the process (SIGBUS)."""
    write(tmp_path / "saved", MANIFEST, ram)
    refuse(tmp_path / "saved", f"memory is {MIN_SIZE}, but ram has {ram} bytes")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "ram"])
def test_no_file_stays_open_when_one_is_missing(tmp_path: Path, name: str):
    write(tmp_path / "saved", MANIFEST)
    (tmp_path / "saved" / name).unlink()
    refuse(tmp_path / "saved", f"{name}: no such file")


def test_memory_that_ends_within_a_page_is_refused(tmp_path: Path):
    size = MIN_SIZE + 512
    write(tmp_path / "saved", MANIFEST | {"memory": size}, size)
    refuse(tmp_path / "saved", f"memory is {size}, no multiple of 4096")


def test_machines_of_one_snapshot_share_nothing_that_they_write(tmp_path: Path):
    write(tmp_path / "saved", MANIFEST)
    with MachineSnapshot.open(tmp_path / "saved") as opened:
        first, second = (GuestMemory(MIN_SIZE, origin=opened.frozen) for _ in range(2))
    try:
        first.ram.bytes[5000] = 7
        assert first.ram.bytes[5000] == 7
        assert second.ram.bytes[5000] == 0
        assert set((tmp_path / "saved" / "ram").read_bytes()) == {0}
    finally:
        first.close()
        second.close()
