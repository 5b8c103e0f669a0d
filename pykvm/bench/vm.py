"""Runs the bare guest in a VM that is a child process, and watches it from outside."""

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join
from typing import IO

from pykvm.bench.child import last_words, running
from pykvm.bench.process import CpuTime, ProcessView
from pykvm.bench.sample import Run, Sample
from pykvm.bench.script import MARK, LoadScript
from pykvm.bench.tool import Job, Progress
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.errors import PykvmError
from pykvm.testing.bare.layout import MEMORY_NEEDED

MEMORY_MIB = MEMORY_NEEDED >> 20
PATIENCE_SECONDS = 70.0
"""For the guest to say something beyond the time that a workload lasts: a little longer than the
guest itself waits for the disk, so that its own words come first."""


class VmRunner:
    """Runs jobs in VMs of one kind.

    ``command`` makes the command line from a job and the path of the script,
    ``memfd`` is the name of the guest's RAM among the process's descriptors,
    ``vcpu`` how the names of vCPU threads begin, and ``status`` what the
    process exits with when the guest has done its work. The guest's first
    serial port is to be the process's standard output.
    """

    def __init__(
        self, command: Callable[[Job, Path], list[str]], memfd: str, vcpu: str, status: int
    ) -> None:
        self._command = command
        self._memfd = memfd
        self._vcpu = vcpu
        self._status = status

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """See Tool."""
        script = LoadScript(
            job.workloads,
            span=job.size // SECTOR_SIZE,
            seconds=job.seconds,
            requests=job.requests,
            tsc_khz=job.tsc_khz,
            seed=seed,
            wait=job.wait,
            queues=job.queues,
        )
        path = job.folder / "script"
        path.write_bytes(script.initrd)
        command = self._command(job, path)
        with tempfile.TemporaryFile() as errors, running(command, errors) as child:
            watch = _Watch(child, self._memfd, self._vcpu)
            try:
                watch.follow(script.marks, job.seconds + PATIENCE_SECONDS, progress)
                status = child.wait(PATIENCE_SECONDS)
                if status != self._status:
                    raise PykvmError(f"it ended with status {status}")
                loads = script.results(watch.read)
            except subprocess.TimeoutExpired:
                raise PykvmError(f"{command[0]} does not end", f"try '{join(command)}'") from None
            except PykvmError as error:
                raise _explained(error, errors, command) from None
            finally:
                watch.close()
        samples = []
        for load, before, after in zip(loads, watch.cpu, watch.cpu[1:], strict=False):
            used = after - before
            samples.append(Sample.of_guest(load, job.tsc_khz, used.whole - used.vcpus, used.whole))
        return Run(tuple(samples), watch.start, watch.memory)


def _explained(error: PykvmError, errors: IO[bytes], command: Sequence[str]) -> PykvmError:
    """``error``, with the last that the process said about it."""
    return PykvmError(
        f"a run of {Path(command[0]).name} failed: {error.message}{last_words(errors)}",
        error.hint or f"the command was '{join(command)}'",
    )


class _Watch:
    """Reads the marks of a running VM and what it has used at each.

    ``cpu`` has an entry per mark from 0 on, ``start`` and ``memory`` are as in Run.
    """

    def __init__(self, child: subprocess.Popen[bytes], memfd: str, vcpu: str) -> None:
        assert child.stdout is not None
        self._began = time.monotonic()
        self._output = child.stdout.fileno()
        self._pid = child.pid
        self._vcpu = vcpu
        self._view: ProcessView | None = None
        self._memfd = memfd
        self._ram = -1
        self.cpu: list[CpuTime] = []
        self.start: float | None = None
        self.memory: int | None = None

    def follow(self, last: int, seconds: float, progress: Progress) -> None:
        """Until mark ``last``; PykvmError if the process ends before, or says nothing so long."""
        for line in self._lines(seconds):
            if not line.startswith(MARK):
                continue
            number = int(line[len(MARK) :])
            try:
                self._mark(number, number == last)
            except (OSError, LookupError):
                raise PykvmError("it ended before the load did") from None
            if number == last:
                return
            progress(max(number, 0))
        raise PykvmError("it ended before the load did")

    def _mark(self, number: int, last: bool) -> None:
        if number < 0:
            self.start = time.monotonic() - self._began
            self._view = ProcessView(self._pid, self._vcpu)
            self._ram = self._view.open_memory(self._memfd)
            return
        assert self._view is not None, "the first mark comes first"
        self.cpu.append(self._view.cpu_time())
        if last:
            with suppress(OSError):
                self.memory = self._view.memory(except_for=self._memfd)

    def _lines(self, patience: float) -> Iterator[bytes]:
        """Lines of output, waiting so many seconds for the next."""
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while True:
                if not selector.select(patience):
                    raise PykvmError(f"the guest said nothing for {patience:.0f} seconds")
                data = os.read(self._output, 4096)
                if not data:
                    return
                *lines, pending = (pending + data).replace(b"\r", b"").split(b"\n")
                yield from lines

    def read(self, address: int, length: int) -> bytes:
        """Guest RAM, also after the process has ended."""
        return os.pread(self._ram, length, address)

    def close(self) -> None:
        """Give up guest RAM."""
        if self._ram >= 0:
            os.close(self._ram)
            self._ram = -1
