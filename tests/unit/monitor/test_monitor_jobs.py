"""The jobs of the monitor: each goes through its states, and stays until it is dismissed."""

import threading
from pathlib import Path

import pytest
from patience import patience

from pykvm.monitor.jobs import MOST_JOBS, Jobs, JobStatusChange
from pykvm.monitor.protocol import QmpError
from pykvm.snapshot.fields import SnapshotError


class FakeMachine:
    """``save`` notes the folder, waits until ``go``, and raises ``error``."""

    def __init__(self) -> None:
        self.saved: list[Path] = []
        self.error: BaseException | None = None
        self.go = threading.Event()
        self.go.set()

    def save(self, folder: Path) -> None:
        self.saved.append(folder)
        assert self.go.wait(patience())
        if self.error:
            raise self.error


class Rig:
    def __init__(self, folder: Path | None = None) -> None:
        self.machine = FakeMachine()
        self.events: list[tuple[str, str]] = []
        self.bugs: list[BaseException] = []
        self.jobs = Jobs(self.machine, self._hear, self.bugs.append, folder)  # type: ignore[arg-type]

    def _hear(self, event: object) -> None:
        assert isinstance(event, JobStatusChange)
        self.events.append((event.id, event.status))


@pytest.fixture
def rig() -> Rig:
    return Rig(Path("/in"))


def test_a_job_goes_through_its_states(rig: Rig) -> None:
    rig.machine.go.clear()
    rig.jobs.save("one", "a")
    with pytest.raises(QmpError, match="there is a job 'one' already"):
        rig.jobs.save("one", "b")
    assert rig.jobs.query()[0]["status"] in ("created", "running")
    with pytest.raises(QmpError, match="can be dismissed at its end"):
        rig.jobs.dismiss("one")
    rig.machine.go.set()
    rig.jobs.close()
    assert rig.machine.saved == [Path("/in/a")]
    assert rig.jobs.query() == [
        {
            "id": "one",
            "type": "snapshot-save",
            "status": "concluded",
            "current-progress": 1,
            "total-progress": 1,
        }
    ]
    rig.jobs.dismiss("one")
    assert rig.jobs.query() == []
    assert rig.events == [
        ("one", "created"),
        ("one", "running"),
        ("one", "concluded"),
        ("one", "null"),
    ]
    with pytest.raises(QmpError, match="there is no job 'one'"):
        rig.jobs.dismiss("one")


@pytest.mark.parametrize(
    "error", [SnapshotError("no room", "make some"), TimeoutError("a vCPU is busy")]
)
def test_a_failed_job_says_why(rig: Rig, error: Exception) -> None:
    rig.machine.error = error
    rig.jobs.save("one", "/abs/x")
    rig.jobs.close()
    assert rig.machine.saved == [Path("/abs/x")]
    assert rig.jobs.query()[0]["error"] == str(error)
    assert rig.events[-1] == ("one", "concluded")
    assert not rig.bugs


def test_a_bug_ends_the_job_and_is_reported(rig: Rig) -> None:
    rig.machine.error = ZeroDivisionError("oh")
    rig.jobs.save("one", "a")
    rig.jobs.close()
    assert rig.jobs.query()[0]["error"].startswith("a bug: ZeroDivisionError")
    assert rig.bugs == [rig.machine.error]


def test_a_guest_that_runs_one_command_is_not_put_back(rig: Rig) -> None:
    with pytest.raises(QmpError, match="started for one command"):
        rig.jobs.load("one", "a")
    assert rig.jobs.query() == []


def test_relative_paths_without_a_folder_are_the_process_own() -> None:
    rig = Rig()
    rig.jobs.save("one", "a")
    rig.jobs.close()
    assert rig.machine.saved == [Path("a")]


@pytest.mark.parametrize(("id", "tag"), [("", "a"), ("x" * 129, "a"), ("one", ""), ("one", "a\0b")])
def test_impossible_jobs_are_refused(rig: Rig, id: str, tag: str) -> None:
    with pytest.raises(QmpError):
        rig.jobs.save(id, tag)
    assert rig.jobs.query() == []
    assert not rig.events


def test_the_list_is_bounded(rig: Rig) -> None:
    for number in range(MOST_JOBS):
        rig.jobs.save(str(number), "a")
    with pytest.raises(QmpError, match="dismiss concluded ones"):
        rig.jobs.save("more", "a")
    rig.jobs.close()
