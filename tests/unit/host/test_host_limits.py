"""A limit of the process that is in the way is named."""

import errno
import resource
import threading

import pytest

from pykvm.errors import HostError
from pykvm.host.limits import advice, thread_advice
from pykvm.host.threads import start

NONE = resource.RLIM_INFINITY


def limited(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    """Only these limits are set: AS, DATA, STACK."""
    known = {getattr(resource, f"RLIMIT_{name}"): most for name, most in limits.items()}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (known.get(kind, NONE), NONE))


@pytest.mark.parametrize(
    ("limits", "number", "hint"),
    [
        ({}, errno.ENOMEM, "otherwise"),
        ({"AS": 1 << 30}, errno.ENOMEM, "raise the limit of memory (ulimit -v)"),
        ({"DATA": 1 << 30}, errno.ENOMEM, "raise the limit of memory (ulimit -d)"),
        ({}, errno.EFBIG, "raise the limit of the size of files (ulimit -f)"),
        ({}, errno.EMFILE, "raise the limit of open files (ulimit -n)"),
        ({"AS": 1 << 30}, errno.EIO, "otherwise"),
    ],
)
def test_an_error_that_a_limit_can_cause_has_a_hint(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], number: int, hint: str
) -> None:
    limited(monkeypatch, **limits)
    assert advice(number, "otherwise") == hint


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"STACK": 8 << 20}, "ulimit -u"),
        ({"STACK": 100 << 30}, "102400 MiB: lower that limit (ulimit -s)"),
        ({"STACK": 8 << 20, "AS": 1 << 30}, "ulimit -v"),
    ],
)
def test_a_thread_that_cannot_be_started_is_an_error_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], word: str
) -> None:
    limited(monkeypatch, **limits)

    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(HostError, match="no thread for the moon") as caught:
        start(threading.Thread(), "the moon")
    assert word in caught.value.hint


def test_hidden_limits_are_all_named_in_the_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(kind: int) -> None:
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(resource, "getrlimit", forbidden)
    assert all(f"-{letter}" in thread_advice() for letter in "uvds")
    assert advice(errno.ENOMEM, "otherwise") == "otherwise"
