"""The roles of sectors in an ext4 filesystem."""

import re
import subprocess

import pytest

from pykvm.crash.checks import debugfs
from pykvm.crash.ext4_roles import roles

BLOCK = 1024


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A filesystem with a folder /A, a file /A/b, and a journal."""
    path = tmp_path_factory.mktemp("ext4") / "image"
    tree = path.parent / "tree"
    (tree / "A").mkdir(parents=True)
    (tree / "A/b").write_bytes(b"content\n")
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-d", tree, path, "8M"]
    subprocess.run(command, check=True)
    return str(path)


def role_of(image, block: int, content: bytes = bytes(512)) -> str:
    (role,) = roles(image, {block * BLOCK // 512: content}).values()
    return role


def first_block(image, file: str) -> int:
    return int(debugfs(image, f"blocks {file}").split()[0])


def test_metadata_has_roles(image):
    text = debugfs(image, "stats")
    places = re.search(r"block bitmap at (\d+), inode bitmap at (\d+), inode table at (\d+)", text)
    blocks, inodes, table = map(int, places.groups())
    assert role_of(image, 1) == "superblock"
    assert role_of(image, 2) == "group descriptors"
    assert role_of(image, blocks) == "block bitmap"
    assert role_of(image, inodes) == "inode bitmap"
    assert role_of(image, table) == role_of(image, table + 511) == "inode table"
    assert role_of(image, 8000) == "free block"


def test_files_and_folders_have_names(image):
    assert role_of(image, first_block(image, "/A/b")) == "data of /A/b"
    assert role_of(image, first_block(image, "/A")) == "folder /A"
    assert role_of(image, first_block(image, "/")) == "folder /"


@pytest.mark.parametrize(
    ("kind", "role"),
    [(1, "journal descriptor"), (2, "journal commit"), (5, "journal revocation"), (9, "journal")],
)
def test_the_content_tells_blocks_of_the_journal_apart(image, kind, role):
    content = bytes.fromhex("c03b3998") + kind.to_bytes(4, "big") + bytes(504)
    assert role_of(image, first_block(image, "<8>"), content) == role
    assert role_of(image, first_block(image, "<8>")) == "journal"


def test_a_disk_without_ext4_has_no_roles(tmp_path):
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    assert roles(str(tmp_path / "image"), {3: bytes(512)}) == {}


def test_names_of_a_guest_are_printable(tmp_path):
    path = tmp_path / "image"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a\x1b]0;b").write_bytes(b"content\n")
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-d", tree, path, "2M"]
    subprocess.run(command, check=True)
    blocks = {block * 2: bytes(512) for block in range(2048)}
    assert "data of /a\\x1b]0;b" in roles(str(path), blocks).values()
