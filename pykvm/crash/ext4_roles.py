"""The roles of sectors in an ext4 filesystem: superblock, journal, inode table, data of a file.

debugfs tells the places. The filesystem's journal has to be replayed before, because the places of
new files are only there until then.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from pykvm.crash.checks import debugfs
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.errors import shown

_AT_ONCE: Final = 500
"""Blocks in one command of debugfs, whose length is bounded."""
_MOST_NAMES: Final = 20
_JOURNAL: Final = 8
"""The inode of the journal, if debugfs names no other."""
_JOURNAL_MAGIC: Final = bytes.fromhex("c03b3998")
_JOURNAL_BLOCKS: Final = {
    1: "journal descriptor",
    2: "journal commit",
    3: "journal superblock",
    4: "journal superblock",
    5: "journal revocation",
}
_GROUP: Final = re.compile(
    r"Group +\d+: block bitmap at (\d+), inode bitmap at (\d+), inode table at (\d+)"
)


def roles(path: str, content: Mapping[int, bytes]) -> dict[int, str]:
    """The role of each sector in ``content`` on the image at ``path``; none if it is not ext4.

    ``content`` has the bytes of a lost sector, which tell the blocks of the journal apart.
    """
    layout = _Layout(debugfs(path, "stats"))
    if not layout.block_size:
        return {}
    found: dict[int, str] = {}
    unknown: dict[int, list[int]] = {}
    for sector in content:
        block = sector * SECTOR_SIZE // layout.block_size
        if role := layout.role(block, sector):
            found[sector] = role
        else:
            unknown.setdefault(block, []).append(sector)
    owners = _owners(path, unknown)
    names = _names(path, set(owners.values()) - {layout.journal})
    for block, sectors in unknown.items():
        inode = owners.get(block)
        for sector in sectors:
            if inode is None:
                found[sector] = "free block"
            elif inode == layout.journal:
                found[sector] = _in_journal(content[sector])
            else:
                found[sector] = names.get(inode, f"inode {inode}")
    return found


class _Layout:
    """The fixed places of a filesystem, from the output of debugfs' ``stats``."""

    def __init__(self, text: str) -> None:
        self.block_size = _number(text, "Block size")
        self.journal = _number(text, "Journal inode") or _JOURNAL
        self._per_table = _number(text, "Inode blocks per group")
        self._first = _number(text, "First block")
        self._per_group = _number(text, "Blocks per group")
        self._groups = [tuple(map(int, match)) for match in _GROUP.findall(text)]
        descriptors = len(self._groups) * (_number(text, "Group descriptor size") or 32)
        self._descriptors = -(-descriptors // self.block_size) if self.block_size else 0

    def role(self, block: int, sector: int) -> str:
        """The role of a block of metadata; "" if it is none."""
        if sector in (2, 3):
            return "superblock"
        if self._first < block <= self._first + self._descriptors:
            return "group descriptors"
        for blocks, inodes, table in self._groups:
            if block == blocks:
                return "block bitmap"
            if block == inodes:
                return "inode bitmap"
            if table <= block < table + self._per_table:
                return "inode table"
        return ""


def _owners(path: str, blocks: Iterable[int]) -> dict[int, int]:
    """The inode of each block that has one."""
    pairs = []
    left = iter(blocks)
    while wanted := " ".join(map(str, islice(left, _AT_ONCE))):
        pairs += [line.split("\t") for line in debugfs(path, f"icheck {wanted}").splitlines()]
    return {int(a): int(b) for a, b, *_ in (p for p in pairs if len(p) > 1) if b.isdecimal()}


def _names(path: str, inodes: Iterable[int]) -> dict[int, str]:
    """A name of each inode that has one; of some inodes, if there are very many."""
    wanted = " ".join(map(str, islice(sorted(inodes), _MOST_NAMES)))
    made = {}
    for line in debugfs(path, f"ncheck {wanted}").splitlines() if wanted else []:
        number, tab, name = line.partition("\t")
        if tab and number.isdecimal():
            kind = "folder" if "Type: directory" in debugfs(path, f"stat <{number}>") else "data of"
            made[int(number)] = f"{kind} {shown(re.sub('/+', '/', name))}"
    return made | ({2: "folder /"} if 2 in set(inodes) else {})


def _in_journal(content: bytes) -> str:
    if content[:4] == _JOURNAL_MAGIC:
        return _JOURNAL_BLOCKS.get(int.from_bytes(content[4:8], "big"), "journal")
    return "journal"


def _number(text: str, name: str) -> int:
    match = re.search(rf"^{name}: +(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0
