"""The documentation: its links lead somewhere, and it lists the options that there are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from pykvm.cli.disk_keys import disk_help

PAGES = sorted(
    path
    for part in ("*.md", "docs/**/*.md", "guest/**/*.md", "speed/*.md", "fuzz/*.md")
    for path in ROOT.glob(part)
)


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("boot", "cli"),
        ("doctor", "cli"),
        ("cache", "cli"),
        ("snapshot restore", "cli"),
        ("snapshot save", "cli"),
        ("bench disk", "bench"),
        ("bench fio", "bench-fio"),
        ("bench compare", "bench-compare"),
        ("trace", "trace"),
    ],
)
def test_every_option_is_explained(command: str, page: str) -> None:
    text = (ROOT / f"docs/reference/{page}.md").read_text()
    run = [sys.executable, "-m", "pykvm", *command.split(), "--help"]
    shown = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}
    assert options
    assert {option for option in options if option not in text} <= {"--output"}


def test_every_key_of_a_disk_is_in_its_table() -> None:
    text = (ROOT / "docs/reference/disk-options.md").read_text()
    first = text.split("| `readonly`", 1)[1].split("\n\n", 1)[0]
    cells = [line.split("|")[1] for line in ("| `readonly`" + first).splitlines()]
    keys = [re.findall(r"`([\w-]+)`", cell)[0] for cell in cells]
    assert sorted(keys) == sorted(re.findall(r"^  ([\w-]+)=", disk_help(), re.MULTILINE))


@pytest.mark.parametrize("folder", ["pykvm", "devices/virtio_blk"])
def test_every_part_is_in_the_architecture(folder: str) -> None:
    """Packages and modules of pykvm, and the rooms of the block device."""
    text = (ROOT / "docs/architecture.md").read_text()
    parts = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / folder).iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.name[0] != "_"
    }
    assert {part for part in parts if not re.search(rf"[`/]{re.escape(part)}`", text)} == set()
