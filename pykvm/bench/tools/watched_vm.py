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
from pykvm.bench.guest_ram import Code, GuestRam
from pykvm.bench.script import MARK, OPEN, LoadScript
from pykvm.bench.tools.base import Placement
from pykvm.bench.tools.child import last_words, running
from pykvm.bench.tools.process import CpuTime, Memory, ProcessView
from pykvm.errors import PykvmError

ENDED = "it ended before the load did"


@dataclass(frozen=True, slots=True)
class Kind:
    """How to look into a VM's process.

    ``vcpu`` is how the names of vCPU threads begin, and ``status`` what it exits with
    when the guest has done its work. ``places``: it puts its threads where the
    job has them by itself. The guest's first serial port is its
    standard output.
    """

    vcpu: str
    status: int
    places: bool = True


@contextmanager
def watched(
    command: Sequence[str], kind: Kind, code: Code, script: LoadScript, patience: float
) -> Iterator["Vm"]:
    """The VM that ``command`` starts on ``script``; it is gone at the end of the block.

    ``code`` is its kernel's, and it has MEMORY_NEEDED bytes of RAM.
    """
    with tempfile.TemporaryFile() as errors, running(command, errors) as child:
        vm = Vm(child, command, errors, kind, code, script, patience)
        try:
            yield vm
        finally:
            vm.close()


class Vm:
    """See :func:`watched`. Its methods raise PykvmError, with what the process said, if the VM
    ends before its time or says nothing for ``patience`` seconds.

    ``start`` is as in Run, and known after the first mark.
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
        """Wait until the guest is at ``mark``, the next one; it then waits at its gate."""
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
        """Put its threads where ``placement`` has them."""
        assert self._view is not None, "the first mark comes first"
        try:
            self._view.place(placement.vcpus, {placement.disk})
        except OSError:
            raise self._failed(ENDED) from None

    def open_gate(self, mark: int) -> None:
        """Let the guest go on from ``mark``."""
        assert self._ram is not None, "the first mark comes first"
        try:
            self._ram.write(self._script.gates[mark + 1], OPEN)
        except OSError:
            raise self._failed(ENDED) from None

    def cpu_time(self) -> CpuTime:
        """What the process has used."""
        assert self._view is not None, "the first mark comes first"
        try:
            return self._view.cpu_time()
        except OSError:
            raise self._failed(ENDED) from None

    def memory(self) -> Memory | None:
        """What the process has; None if it cannot be known."""
        assert self._view is not None, "the first mark comes first"
        assert self._ram is not None, "the first mark comes first"
        with suppress(OSError):
            return self._view.memory(self._ram.start, self._ram.end)
        return None

    def finish(self) -> list[LoadResult]:
        """What the loads left, when the guest has gone on from its last mark and is gone."""
        loads = self._results()
        self.open_gate(self._script.marks)
        status = self._status()
        if status != self._kind.status:
            raise self._failed(f"it ended with status {status}")
        return loads

    def _results(self) -> list[LoadResult]:
        """At the last mark: guest RAM is gone when the process is."""
        assert self._ram is not None, "the first mark comes first"
        try:
            return self._script.results(self._ram.read)
        except OSError:
            raise self._failed(ENDED) from None
        except PykvmError as error:
            raise self._failed(error.message, error.hint) from None

    def close(self) -> None:
        """Give up guest RAM."""
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
                    raise self._failed(f"the guest said nothing for {self._patience:.0f} seconds")
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
            raise self._failed("it does not end") from None

    def _failed(self, message: str, hint: str = "") -> PykvmError:
        program = Path(self._command[0]).name
        return PykvmError(
            f"a run of {program} failed: {message}{last_words(self._errors)}",
            hint or f"the command was '{join(self._command)}'",
        )
