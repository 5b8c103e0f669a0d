"""The ramdisk's format, and its properties on which the guest relies."""

from pathlib import Path

import pytest
from recipe import cpio, initrd


def members(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the format: name -> (mode, data)."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[start : start + size])
        at = (start + size + 3) & ~3


ENTRIES = [
    cpio.directory("bin"),
    cpio.file("bin/odd", b"abcde", 0o600),
    cpio.symlink("sbin", "bin"),
    cpio.character_device("console", 5, 1),
]


def test_entries_come_back():
    found = members(cpio.archive(ENTRIES))
    assert found == {
        "bin": (0o040755, b""),
        "bin/odd": (0o100600, b"abcde"),
        "sbin": (0o120777, b"bin"),
        "console": (0o020600, b""),
    }


def test_same_entries_same_bytes():
    assert cpio.archive(ENTRIES) == cpio.archive(ENTRIES)


def test_size_is_a_multiple_of_a_block():
    assert len(cpio.archive(ENTRIES)) % 512 == 0


@pytest.mark.parametrize("name", ["/absolute", "", "bin"])
def test_impossible_names_are_refused(name: str):
    with pytest.raises(ValueError, match="entry"):
        cpio.archive([cpio.directory("bin"), cpio.directory(name)])


def test_the_ramdisk_holds_back_its_tools(tmp_path: Path):
    for name in ("init", "busybox", "fio", "mke2fs"):
        (tmp_path / name).write_bytes(name.encode() * 3)
    data = initrd.build(
        tmp_path / "init", tmp_path / "busybox", [tmp_path / "fio", tmp_path / "mke2fs"]
    )
    found = members(data)
    assert found["init"] == (0o100755, b"init" * 3)
    assert found["bin/sh"][1] == b"busybox"
    assert found["bin/fio"][1] == b"../init"
    # The kernel skips entries that it cannot create, so the folder must not exist.
    assert ".tools" not in found
    assert members(found[".tools/archive"][1])["mke2fs"] == (0o100755, b"mke2fs" * 3)
