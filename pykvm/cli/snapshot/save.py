"""``pykvm snapshot save``: asks a running pykvm, by its monitor, to save its guest."""

import json
import os
import socket
import time
from typing import Any, Self

from pykvm.errors import PykvmError, UsageError, reason_of, shown

_MOST_LINE = 1 << 20
_POLL_SECONDS = 0.02


class QmpClient:
    """A connection to the monitor at ``path``. A context manager; each wait ends at a deadline."""

    def __init__(self, path: str, seconds: float) -> None:
        self._path = path
        self._deadline = time.monotonic() + seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        try:
            self._wait()
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            reason = reason_of(error) if error.errno else "the path is too long for a socket"
            raise UsageError(
                f"the monitor {shown(path)} does not answer: {reason}",
                "give the socket of a running 'pykvm boot --monitor SOCKET'",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def negotiate(self) -> None:
        """The beginning of the conversation. PykvmError if this is no monitor."""
        if "QMP" not in self.message():
            raise self._nonsense()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """The result of ``command``; PykvmError. Earlier events are dropped."""
        message: dict[str, object] = {"execute": command, "id": command}
        if arguments:
            message["arguments"] = {
                name.replace("_", "-"): value for name, value in arguments.items()
            }
        self._send(json.dumps(message).encode() + b"\n")
        while (found := self.message()).get("id") != command:
            pass
        if "return" in found:
            return found["return"]
        error = found.get("error")
        text = error.get("desc") if isinstance(error, dict) else None
        raise PykvmError(f"{command} failed: {shown(str(text))}")

    def message(self) -> dict[str, Any]:
        """The next message. PykvmError at the deadline, and if the monitor is gone."""
        while b"\n" not in self._buffer:
            try:
                self._wait()
                data = self._socket.recv(64 << 10)
            except TimeoutError:
                raise PykvmError(
                    f"the monitor {shown(self._path)} is silent", "give more time by --timeout S"
                ) from None
            except OSError:
                data = b""
            if not data:
                raise self._gone()
            self._buffer += data
            if len(self._buffer) > _MOST_LINE:
                raise self._nonsense()
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise self._nonsense() from None
        if not isinstance(found, dict):
            raise self._nonsense()
        return found

    def _send(self, data: bytes) -> None:
        try:
            self._wait()
            self._socket.sendall(data)
        except OSError:
            raise self._gone() from None

    def _wait(self) -> None:
        """Let the next operation of the socket take the time that is left."""
        self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))

    def _gone(self) -> PykvmError:
        return PykvmError(f"the pykvm behind {shown(self._path)} has ended the conversation")

    def _nonsense(self) -> PykvmError:
        return PykvmError(f"what listens at {shown(self._path)} is no monitor of pykvm")


def save(path: str, folder: str, seconds: float) -> None:
    """Have the pykvm at the monitor ``path`` save its guest as ``folder``; PykvmError."""
    id = f"pykvm-snapshot-{os.getpid()}-{time.monotonic_ns()}"
    with QmpClient(path, seconds) as client:
        client.negotiate()
        while _status(client) == "prelaunch":  # the monitor listens before the guest starts
            time.sleep(_POLL_SECONDS)
        client.execute("snapshot-save", job_id=id, tag=folder)
        while (job := _job(client, id)).get("status") != "concluded":
            # Each later change of the status has an event, which comes after the answer.
            client.message()
        client.execute("job-dismiss", id=id)
    if problem := job.get("error"):
        raise PykvmError(f"the guest is not saved: {shown(str(problem))}")


def _status(client: QmpClient) -> object:
    found = client.execute("query-status")
    return found.get("status") if isinstance(found, dict) else None


def _job(client: QmpClient, id: str) -> dict[str, Any]:
    jobs = client.execute("query-jobs")
    for job in jobs if isinstance(jobs, list) else ():
        if isinstance(job, dict) and job.get("id") == id:
            return job
    raise PykvmError("the job that saves the guest is gone", "look whether the folder exists")
