"""Background jobs of the monitor: saving the guest and putting it back.

A job goes through the states of QEMU's JobStatus that it needs: created, running, concluded. It
stays in the list until ``job-dismiss``, so that a client that was away learns how it ended.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pykvm.errors import PykvmError, shown
from pykvm.host.threads import start
from pykvm.machine import Machine, RunState
from pykvm.machine.events import Event
from pykvm.monitor.protocol import Json, QmpError

MOST_JOBS: Final = 64
"""Jobs in the list. Concluded ones have to be dismissed before there can be more."""
_MOST_ID: Final = 128
NEVER_CREATED, CREATED, RUNNING, CONCLUDED, GONE = "", "created", "running", "concluded", "null"


class JobStatusChange(Event):
    """The job ``id`` has the new ``status``."""

    def __init__(self, id: str, status: str) -> None:
        super().__init__()
        self.id = id
        self.status = status


class _Job:
    def __init__(self, id: str, kind: str) -> None:
        self.id = id
        self.kind = kind
        self.status = NEVER_CREATED
        self.error = ""
        self.thread: threading.Thread | None = None


class Jobs:
    """The jobs of ``machine``. ``announce`` gets their events. Any thread may call any method."""

    def __init__(
        self,
        machine: Machine,
        announce: Callable[[Event], None],
        on_bug: Callable[[BaseException], None],
        folder: Path | None = None,
        after_reset: Callable[[], None] | None = None,
    ) -> None:
        """``folder``: where relative paths of snapshots begin; None: the working directory.

        ``after_reset`` is called when the guest was put back, before it runs. None: it cannot be
        put back, because a part of the host would not know.
        ``on_bug`` gets the exception of a job that fails by a bug.
        """
        self._on_bug = on_bug
        self._machine = machine
        self._announce = announce
        self._folder = folder
        self._after_reset = after_reset
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}

    def save(self, id: str, tag: str) -> None:
        """Begin to save the guest as the new folder ``tag``. QmpError."""
        path = self._path(tag)
        self._begin(id, "snapshot-save", lambda: self._machine.save(path))

    def load(self, id: str, tag: str) -> None:
        """Begin to put the guest back to the snapshot in the folder ``tag``. QmpError."""
        path = self._path(tag)
        done = self._after_reset
        if done is None:
            raise QmpError("a guest that was started for one command (--exec) cannot be put back")
        self._begin(id, "snapshot-load", lambda: _put_back(self._machine, path, done))

    def query(self) -> list[Json]:
        """JobInfo of each job."""
        with self._lock:
            return [_info(job) for job in self._jobs.values()]

    def dismiss(self, id: str) -> None:
        """Take a concluded job off the list. QmpError."""
        with self._lock:
            job = self._jobs.get(id)
            if job is None:
                raise QmpError(f"there is no job '{id}'")
            if job.status != CONCLUDED:
                raise QmpError(f"the job '{id}' is {job.status}, and can be dismissed at its end")
            del self._jobs[id]
        self._announce(JobStatusChange(id, GONE))

    def close(self) -> None:
        """Wait for the end of all jobs."""
        with self._lock:
            threads = [job.thread for job in self._jobs.values()]
        for thread in threads:
            if thread is not None and thread.ident is not None:
                thread.join()

    def _path(self, tag: str) -> Path:
        if not tag or "\0" in tag:
            raise QmpError("'tag' must be the path of a folder")
        return (self._folder or Path()) / tag

    def _begin(self, id: str, kind: str, work: Callable[[], object]) -> None:
        if not id or len(id) > _MOST_ID:
            raise QmpError(f"'job-id' must have 1 to {_MOST_ID} characters")
        job = _Job(id, kind)
        job.thread = threading.Thread(target=self._run, args=(job, work), name="job", daemon=True)
        with self._lock:
            if id in self._jobs:
                raise QmpError(f"there is a job '{id}' already")
            if len(self._jobs) >= MOST_JOBS:
                raise QmpError(f"there are {MOST_JOBS} jobs; dismiss concluded ones")
            self._jobs[id] = job
        self._change(job, CREATED)
        try:
            start(job.thread, "the job")
        except PykvmError as error:
            self._conclude(job, str(error))

    def _run(self, job: _Job, work: Callable[[], object]) -> None:
        self._change(job, RUNNING)
        problem = ""
        try:
            work()
        except (PykvmError, TimeoutError) as error:  # TimeoutError: a vCPU cannot be stopped
            problem = str(error)
        except BaseException as error:
            problem = f"a bug: {error!r}"
            self._on_bug(error)
        self._conclude(job, problem)

    def _conclude(self, job: _Job, problem: str) -> None:
        job.error = shown(problem)
        self._change(job, CONCLUDED)

    def _change(self, job: _Job, status: str) -> None:
        job.status = status
        self._announce(JobStatusChange(job.id, status))


def _put_back(machine: Machine, path: Path, done: Callable[[], None]) -> None:
    from pykvm.machine.snapshot import MachineSnapshot

    with MachineSnapshot.open(path) as snapshot:
        running = machine.status is RunState.RUNNING
        machine.pause()
        try:
            machine.reset(snapshot)
            done()
        finally:
            if running:
                machine.resume()


def _info(job: _Job) -> dict[str, Any]:
    done = int(job.status == CONCLUDED)
    info = {
        "id": job.id,
        "type": job.kind,
        "status": job.status,
        "current-progress": done,
        "total-progress": 1,
    }
    return {**info, "error": job.error} if job.error else info
