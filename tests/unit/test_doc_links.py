"""The documentation: its links lead somewhere, and it lists the options that there are."""

import re
from pathlib import Path

import pytest

from pykvm.cli.values import disk_help

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "guest").rglob("*.md")]
    + [*(ROOT / "speed").glob("*.md"), *(ROOT / "fuzz").glob("*.md")]
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


def test_every_key_of_a_disk_is_in_its_table() -> None:
    text = (ROOT / "docs/reference/disk-options.md").read_text()
    first = text.split("| `readonly`", 1)[1].split("\n\n", 1)[0]
    cells = [line.split("|")[1] for line in ("| `readonly`" + first).splitlines()]
    keys = [re.findall(r"`([\w-]+)`", cell)[0] for cell in cells]
    assert sorted(keys) == sorted(re.findall(r"^  ([\w-]+)=", disk_help(), re.MULTILINE))
