"""QEMU as a tool: the same guest and file, with an iothread, in each of its aio modes."""

import shutil
import subprocess
from pathlib import Path

from pykvm.bench.disk.sample import Run
from pykvm.bench.disk.tools.base import Job, Progress
from pykvm.bench.disk.tools.qemu_cpu import (
    DEFAULT_MACHINE,
    DEFAULT_MEMORY,
    cpu_model,
    qemu_command,
    qemu_note,
)
from pykvm.bench.disk.tools.vm_runner import VmRunner
from pykvm.bench.disk.tools.watched_vm import Kind
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError

PROGRAM = "qemu-system-x86_64"
POLL_RAISED_NS = 1_000_000
"""The raised ``poll-max-ns``. QEMU's default is 32768."""

DIRECT_ONLY = "native"
"""The aio mode that needs O_DIRECT: without it Linux AIO blocks, and QEMU refuses the mode."""


class QemuTool:
    """See Tool. ``poll_max_ns`` None is QEMU's default, ``memory`` one of MEMORIES."""

    name = "qemu"

    def __init__(
        self,
        aio: str,
        poll_max_ns: int | None = None,
        machine: str = DEFAULT_MACHINE,
        memory: str = DEFAULT_MEMORY,
    ) -> None:
        """UsageError if QEMU is not installed."""
        self.label = f"aio={aio}" + ("" if poll_max_ns is None else f",poll-max-ns={poll_max_ns}")
        self.label += f",machine={machine}" if machine != DEFAULT_MACHINE else ""
        self.label += f",memory={memory}" if memory != DEFAULT_MEMORY else ""
        self._program = qemu_program()
        self._aio = aio
        self._poll = poll_max_ns
        self._machine = machine
        self._memory = memory
        # isa-debug-exit turns status 0 into 1.
        self._runner = VmRunner(self._command, Kind("CPU ", status=1, places=False))

    def version(self) -> str:
        """See Tool."""
        done = subprocess.run([self._program, "--version"], capture_output=True, check=False)
        return done.stdout.decode(errors="replace").partition("\n")[0]

    def note(self, job: Job) -> str:
        """See Tool; HostError if QEMU cannot run a guest here."""
        model = cpu_model(self._program, self._machine, job.kernel)
        return qemu_note(model, self._memory)

    def command(self, job: Job) -> list[str]:
        """See Tool."""
        return self._command(job, job.disks[0], job.folder / "script")

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """See Tool."""
        return self._runner.run(job, seed, progress)

    def _command(self, job: Job, disk: Path, script: Path) -> list[str]:
        file = str(disk).replace(",", ",,")
        poll = "" if self._poll is None else f",poll-max-ns={self._poll}"
        model = cpu_model(self._program, self._machine, job.kernel)
        base = qemu_command(
            program=self._program,
            machine=self._machine,
            kernel=job.kernel,
            words="script",
            cpu=model,
            memory=self._memory,
        )
        return [
            *base,
            *("-initrd", str(script), "-smp", str(job.vcpus)),
            *("-name", "bench,debug-threads=on", "-object", f"iothread,id=io{poll}"),
            "-drive",
            f"if=none,id=disk,format=raw,file={file},cache={job.cache.value},aio={self._aio}",
            "-device",
            f"virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on,num-queues={job.queues}",
        ]


def qemu_program() -> str:
    """The path of QEMU; UsageError if it is not installed."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise UsageError(f"{PROGRAM} is not on the PATH", "install it (Debian: qemu-system-x86)")
    return found


def qemu_tools(
    cache: CacheMode, machine: str = DEFAULT_MACHINE, memory: str = DEFAULT_MEMORY
) -> list[QemuTool]:
    """QEMU in every aio mode that ``cache`` allows, with the default polling and with longer."""
    modes = ["threads", "io_uring"]
    if cache.direct:
        modes.insert(1, DIRECT_ONLY)
    polls = (None, POLL_RAISED_NS)
    return [QemuTool(aio, poll, machine, memory) for aio in modes for poll in polls]
