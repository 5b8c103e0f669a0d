"""docs/reference/api.md: it says what the docstrings say, about every public name."""

import re

import api_page

import pykvm


def test_the_page_is_what_the_docstrings_say() -> None:
    wanted = "run python tests/helpers/api_page.py"
    assert api_page.PAGE.read_text() == api_page.page(), wanted


def test_every_public_name_has_one_place() -> None:
    names = " ".join(api_page.GROUPS.values()).split()
    assert sorted(names) == sorted(pykvm.__all__)


def test_nothing_of_the_docstrings_markup_is_left() -> None:
    text = api_page.page()
    assert "``" not in text.replace("```", "")
    assert re.findall(r":\w+:`", text) == []
