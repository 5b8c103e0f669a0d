"""A VM that is a child process and carries out a script of loads, watched from outside."""

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import IO

from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.results import LoadResult
from pykvm.bench.disk.guest_ram import Code, GuestRam
from pykvm.bench.disk.script import MARK, OPEN, LoadScript
from pykvm.bench.disk.tools.base import Placement
from pykvm.bench.disk.tools.child import last_words, running
from pykvm.bench.disk.tools.process import CpuTime, Memory, ProcessView
from pykvm.errors import PykvmError

ENDED = "it ended before the load"


@dataclass(frozen=True, slots=True)
class Kind:
    """The facts about a tool's VM processes.

    The names of vCPU threads begin with ``vcpu``. ``status`` is the exit status after the guest
    has done its work. ``places``: the process places its threads on the job's CPUs without help.
    The guest's first serial port is the process's standard output.
    """

    vcpu: str
    status: int
    places: bool = True


@contextmanager
def watched(
    command: Sequence[str], kind: Kind, code: Code, script: LoadScript, patience: float
) -> Iterator["Vm"]:
    """A context with the VM that ``command`` starts to run ``script``; it ends with the block.

    ``code`` is the code of its kernel. The VM has MEMORY_NEEDED bytes of RAM.
    """
    with tempfile.TemporaryFile() as errors, running(command, errors) as child:
        vm = Vm(child, command, errors, kind, code, script, patience)
        try:
            yield vm
        finally:
            vm.close()


class Vm:
    """See :func:`watched`. Its methods raise PykvmError, with the process's last lines, if the VM
    ends too early or prints nothing for ``patience`` seconds.

    ``start`` is as in Run, and set after the first mark.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        command: Sequence[str],
        errors: IO[bytes],
        kind: Kind,
        code: Code,
        script: LoadScript,
        patience: float,
    ) -> None:
        self._began = time.monotonic()
        self._child = child
        self._command = command
        self._errors = errors
        self._kind = kind
        self._code = code
        self._script = script
        self._patience = patience
        self._pending = b""
        self._marks: list[int] = []
        self._view: ProcessView | None = None
        self._ram: GuestRam | None = None
        self.start = 0.0

    def follow(self, mark: int) -> None:
        """Wait until the guest is at ``mark``, its next one. The guest then waits at its gate."""
        said = self._next_mark()
        assert said == mark, "the guest counts its marks"
        if mark < 0:
            self.start = time.monotonic() - self._began
            try:
                self._view = ProcessView(self._child.pid, self._kind.vcpu)
                self._ram = GuestRam(self._child.pid, MEMORY_NEEDED, self._code)
            except OSError:
                raise self._failed(ENDED) from None
            except LookupError:
                raise self._failed("its guest's RAM cannot be found") from None

    def place(self, placement: Placement) -> None:
        """Let its threads run on the CPUs of ``placement``."""
        assert self._view is not None, "the first mark comes first"
        try:
            self._view.place(placement.vcpus, {placement.disk})
        except OSError:
            raise self._failed(ENDED) from None

    def open_gate(self, mark: int) -> None:
        """Let the guest continue from ``mark``."""
        assert self._ram is not None, "the first mark comes first"
        try:
            self._ram.write(self._script.gates[mark + 1], OPEN)
        except OSError:
            raise self._failed(ENDED) from None

    def cpu_time(self) -> CpuTime:
        """The processor time of the process so far."""
        assert self._view is not None, "the first mark comes first"
        try:
            return self._view.cpu_time()
        except OSError:
            raise self._failed(ENDED) from None

    def memory(self) -> Memory | None:
        """The memory of the process; None if it cannot be read."""
        assert self._view is not None, "the first mark comes first"
        assert self._ram is not None, "the first mark comes first"
        with suppress(OSError):
            return self._view.memory(self._ram.start, self._ram.end)
        return None

    def finish(self) -> list[LoadResult]:
        """Let the guest continue from its last mark, wait for the VM's end, and return the loads'
        results."""
        loads = self._results()
        self.open_gate(self._script.marks)
        status = self._status()
        if status != self._kind.status:
            raise self._failed(f"it ended with status {status}")
        return loads

    def _results(self) -> list[LoadResult]:
        """The loads' results. They are read at the last mark, while guest RAM still exists."""
        assert self._ram is not None, "the first mark comes first"
        try:
            return self._script.results(self._ram.read)
        except OSError:
            raise self._failed(ENDED) from None
        except PykvmError as error:
            raise self._failed(error.message, error.hint) from None

    def close(self) -> None:
        """Close guest RAM."""
        if self._ram is not None:
            self._ram.close()
            self._ram = None

    def _next_mark(self) -> int:
        """The number of the next mark in the VM's output."""
        assert self._child.stdout is not None
        output = self._child.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while not self._marks:
                if not selector.select(self._patience):
                    raise self._failed(f"the guest was silent for {self._patience:.0f} seconds")
                data = os.read(output, 4096)
                if not data:
                    raise self._failed(f"{ENDED}, with status {self._status()}")
                *lines, self._pending = (self._pending + data).replace(b"\r", b"").split(b"\n")
                self._marks += (int(line[len(MARK) :]) for line in lines if line.startswith(MARK))
        return self._marks.pop(0)

    def _status(self) -> int:
        try:
            return self._child.wait(self._patience)
        except subprocess.TimeoutExpired:
            raise self._failed("its process does not end") from None

    def _failed(self, message: str, hint: str = "") -> PykvmError:
        program = Path(self._command[0]).name
        return PykvmError(
            f"a run of {program} failed: {message}{last_words(self._errors)}",
            hint or f"the command was '{join(self._command)}'",
        )
