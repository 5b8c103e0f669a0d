"""Guests without a machine: see tests/helpers/fake_guest.py."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_guest import FakeGuest


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Callable[..., FakeGuest]]":
    """Makes a FakeGuest, which is closed at the end."""
    made: list[FakeGuest] = []

    def make(*arguments: Any, **options: Any) -> FakeGuest:
        made.append(FakeGuest(monkeypatch, *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.guest.close()
