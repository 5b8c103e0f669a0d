"""docs/reference/features.md: its tables and the device say the same, and what it names exists.

The latter also of hostile-input.md.
"""

import ast
import re
from typing import NamedTuple

import pytest
from checkout import ROOT

from pykvm.cli.disk_keys import parse_disk
from pykvm.devices.virtio_blk import constants as blk
from pykvm.devices.virtio_blk.features import offered
from pykvm.virtio import constants as ring
from pykvm.virtio.constants import VIRTIO_F_VERSION_1

TEXT = (ROOT / "docs/reference/features.md").read_text()
RESERVED = {3, 8, *range(18, 24), 25, 26, 30, 31}
"""Bits that mean nothing to a block device; 30 is unused, 31 was QEMU's own."""


class Row(NamedTuple):
    """A line of the first two tables. ``on`` and ``off`` are options; None: not possible."""

    bit: int
    name: str
    on: str | None
    off: str | None


def cell(text: str) -> str | None:
    """The options of a cell."""
    return {"no": None, "": None, "default": ""}.get(text, text.strip("`"))


def rows() -> list[Row]:
    """Those of features, in the order of the page."""
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in TEXT.splitlines()]
    return [
        Row(int(line[0]), line[1].split(",")[0], cell(line[2]), cell(line[3]))
        for line in lines
        if len(line) == 5 and line[0].isdigit()
    ]


def with_options(text: str) -> int:
    """What a disk with these options of ``--disk`` offers."""
    options = parse_disk(f"disk,{text}" if text else "disk")
    return offered(options, options.readonly) | VIRTIO_F_VERSION_1


def test_every_bit_is_there_once_and_has_its_name() -> None:
    listed = [row.bit for row in rows()]
    assert listed == [bit for bit in range(42) if bit not in RESERVED]
    for row in rows():
        where = blk if row.bit < 24 else ring
        prefix = "VIRTIO_BLK_F_" if row.bit < 24 else "VIRTIO_F_"
        assert getattr(where, prefix + row.name, 1 << row.bit) == 1 << row.bit
        assert (row.on is None) == (not hasattr(where, prefix + row.name)), row


def test_what_is_offered_is_what_is_listed() -> None:
    everything = ",".join(row.on for row in rows() if row.on and row.name != "RO")
    listed = sum(1 << row.bit for row in rows() if row.on is not None)
    assert with_options(everything) | with_options("readonly=on") == listed


@pytest.mark.parametrize("row", [row for row in rows() if row.on is not None], ids=lambda r: r.name)
def test_each_switch_works(row: Row) -> None:
    assert row.on is not None
    assert with_options(row.on) & 1 << row.bit
    if row.name != "VERSION_1":
        assert row.off is not None
        assert not with_options(row.off) & 1 << row.bit


@pytest.mark.parametrize("page", ["features.md", "hostile-input.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    text = (ROOT / "docs/reference" / page).read_text()
    named = set(re.findall(r"(test_\w+\.py)::(test_\w+)", text))
    assert len(named) > 40
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for file, test in named:
        functions = {
            node.name
            for node in ast.walk(ast.parse(files[file].read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert test in functions, f"{file} has no {test}"
