"""The answer of the process that boots a guest for its template, which its guest may forge."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.boot import confined_boot
from pykvm.cli.boot.confined_boot import _answer, _judge
from pykvm.errors import HostError, PykvmError, UsageError
from pykvm.machine.command import BootFailed
from pykvm.machine.outcome import Outcome
from pykvm.snapshot.fields import SnapshotError


def told(error: BaseException | None) -> None:
    """What the parent does when the child's work raises ``error``."""

    def work() -> None:
        if error:
            raise error

    _judge(json.dumps(_answer(work)).encode(), 0)


def test_a_success_is_silent() -> None:
    told(None)


@pytest.mark.parametrize("kind", [SnapshotError, UsageError, HostError, PykvmError])
def test_an_error_arrives_as_it_was(kind: type[PykvmError]) -> None:
    with pytest.raises(kind) as caught:
        told(kind("no room", "make some"))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("no room", "make some")


def test_the_end_of_a_guest_arrives() -> None:
    outcome = Outcome.panic("oops")
    with pytest.raises(BootFailed, match="the guest did not boot: oops") as caught:
        told(BootFailed("oops", outcome))
    assert caught.value.outcome == outcome
    assert caught.value.exit_status == 126


def test_errors_of_the_host_and_bugs_arrive() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        told(OSError(errno.ENOSPC, "x"))
    with pytest.raises(PykvmError, match="a bug: ZeroDivisionError"):
        told(ZeroDivisionError())


@pytest.mark.parametrize(
    ("status", "raised"), [(130, 130), (-9, 137), (1, 125), (0, 125), (128, 125)]
)
def test_a_process_that_says_nothing_has_failed(status: int, raised: int) -> None:
    with pytest.raises(PykvmError) as caught:
        _judge(b"", status)
    assert caught.value.exit_status == raised


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)


@given(
    st.binary()
    | st.dictionaries(
        st.sampled_from(["kind", "message", "hint", "outcome", "reason", "errno"]), JSON
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_answer_is_a_success_or_an_error(data: bytes) -> None:
    try:
        _judge(data, 0)
    except (PykvmError, OSError):
        return
    assert json.loads(data) == {}


def test_signals_reach_the_guest_that_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's own end is told, if a signal comes before there is a machine to finish."""

    def dies(*arguments: object) -> None:
        os._exit(128 + 15)

    monkeypatch.setattr(confined_boot, "_save", dies)
    with pytest.raises(BootFailed, match="ended by SIGTERM") as caught:
        confined_boot.confined_boot(insist=False)(None, "x", 1.0, None)
    assert caught.value.exit_status == 143
