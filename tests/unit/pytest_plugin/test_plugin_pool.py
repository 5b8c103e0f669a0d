"""The snapshots of a session, without guests: starts that fail, and warnings."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.errors import UsageError
from pykvm.guest.errors import GuestDied, GuestError, GuestTimeout
from pykvm.machine.outcome import Outcome
from pykvm.pytest_plugin import pool as module
from pykvm.pytest_plugin.places import UNIT, Places
from pykvm.pytest_plugin.pool import Pool
from pykvm.pytest_plugin.spec import Spec, merged
from pykvm.templates.store import TemplateError

Step = Callable[..., Any]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(Places(str(tmp_path), UNIT))


@pytest.fixture
def spec() -> Spec:
    return merged([{"timeout": 6, "memory": UNIT}], ())


def no_template(outcome: Outcome) -> Step:
    """The boot for a template ends with ``outcome``."""

    def template(config: object, *, timeout: float, watch: Step) -> None:
        watch(SimpleNamespace(outcome=outcome, console_output=b"Run /bin/cat as init\r\n"))
        raise TemplateError(outcome.reason)

    return template


def raises(error: Exception, calls: list[None]) -> Step:
    def call(*arguments: object, **options: object) -> None:
        calls.append(None)
        raise error

    return call


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(Outcome.timeout(6), GuestTimeout), (Outcome.panic(), GuestDied)],
)
def test_a_boot_that_fails_is_tried_once_and_shows_the_console(
    pool: Pool,
    spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    kind: type[GuestError],
) -> None:
    boots: list[None] = []
    monkeypatch.setattr(module, "template", no_template(outcome))
    monkeypatch.setattr(module, "boot", raises(AssertionError("a second boot"), boots))
    for _ in range(2):
        with pytest.raises(kind) as caught:
            pool.snapshot(spec)
        assert outcome.reason in str(caught.value)
        assert ("append='loglevel=7'" in str(caught.value)) is (kind is GuestTimeout)
        assert str(caught.value).endswith("--- console, the end ---\nRun /bin/cat as init")
        monkeypatch.setattr(module, "template", raises(AssertionError("once more"), boots))
    assert not boots


def test_a_guest_that_hangs_is_started_once(
    pool: Pool, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots: list[None] = []
    monkeypatch.setattr(module, "template", lambda *arguments, **options: None)
    monkeypatch.setattr(module, "boot", raises(GuestTimeout("late", "Run /init"), boots))
    for _ in range(3):
        with pytest.raises(GuestTimeout, match=r"(?s)late.*Run /init"):
            pool.snapshot(spec)
    assert len(boots) == 1


def test_a_mistake_of_the_user_is_not_kept(
    pool: Pool, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots: list[None] = []
    monkeypatch.setattr(module, "template", lambda *arguments, **options: None)
    monkeypatch.setattr(module, "boot", raises(UsageError("no such file", "check it"), boots))
    for _ in range(2):
        with pytest.raises(UsageError):
            pool.snapshot(spec)
    assert len(boots) == 2


def test_a_boot_without_a_template_only_warns_where_warnings_are_errors(
    pool: Pool, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = "booting without a template: none can be kept"

    def boot(**options: object) -> None:
        warnings.warn(notice, RuntimeWarning, stacklevel=1)
        raise GuestTimeout("it goes on", "")

    monkeypatch.setattr(module, "template", raises(TemplateError("none can be kept"), []))
    monkeypatch.setattr(module, "boot", boot)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("error")
        with pytest.raises(GuestTimeout, match="it goes on"):
            pool.snapshot(spec)
    assert [str(warning.message) for warning in found] == [notice]
