"""docs/howto/test-with-pytest.md names all that the plugin has."""

import re

import pytest
from checkout import ROOT

from pykvm import pytest_plugin
from pykvm.pytest_plugin import settings
from pykvm.pytest_plugin.kernel_reports import KINDS
from pykvm.pytest_plugin.spec import _OWN

PAGE = (ROOT / "docs/howto/test-with-pytest.md").read_text()


def table(title: str) -> dict[str, str]:
    """The first table of a section: the text of the second column by the first word of each row."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^` ]+)[^|]*?(?:\\\|[^|]*?)*\| (.*?) \|", section, re.MULTILINE)
    return dict(rows)


def test_every_fixture_is_there() -> None:
    fixtures = {name for name in vars(pytest_plugin) if name.startswith("pykvm_")}
    assert set(table("Fixtures")) == fixtures


def test_every_option_is_there() -> None:
    assert set(table("Options of the command line")) == {name for name, _ in settings.OPTIONS}
    for mode in settings.TRACE_MODES:
        assert mode in PAGE


def test_every_ini_option_is_there_with_its_default() -> None:
    rows = table("Options of the ini file")
    defaults = {name: f"`{default}`" for name, _, default, _ in settings.INI if default}
    assert set(rows) == {name for name, *_ in settings.INI}
    assert {name: rows[name] for name in defaults} == defaults


def test_every_keyword_is_there() -> None:
    assert set(table("The guest of a test")) == set(_OWN)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_report_is_there(kind: str) -> None:
    assert f"`{kind}`" in PAGE


def test_every_example_is_there() -> None:
    examples = {path.name for path in (ROOT / "examples").glob("test_*.py")}
    assert set(re.findall(r"^\| \[(\w+\.py)\]", PAGE, re.MULTILINE)) == examples
