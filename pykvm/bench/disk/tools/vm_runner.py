"""Runs the bare guest in VMs that are child processes, and watches them from outside."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import reduce
from operator import add
from pathlib import Path

from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bench.disk.guest_ram import Code
from pykvm.bench.disk.report.compare import middle
from pykvm.bench.disk.sample import Run, Sample
from pykvm.bench.disk.script import LoadScript
from pykvm.bench.disk.tools.base import Job, Placement, Progress
from pykvm.bench.disk.tools.process import CpuTime
from pykvm.bench.disk.tools.watched_vm import Kind, Vm, watched
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE

MEMORY_MIB = MEMORY_NEEDED >> 20
PATIENCE_SECONDS = 70.0
"""The guest may be silent for this long beyond a workload's time: a little longer than the guest
waits for the disk, so that the guest's own message comes first."""


class VmRunner:
    """Runs jobs in VMs of one ``kind``.

    ``command`` returns the command line for a job and the paths of the disk and the script.
    """

    def __init__(self, command: Callable[[Job, Path, Path], list[str]], kind: Kind) -> None:
        self._command = command
        self._kind = kind

    def run(self, job: Job, seed: int, progress: Progress) -> Run:
        """See Tool. Several VMs begin each workload together."""
        script = LoadScript(
            job.workloads,
            span=job.size // SECTOR_SIZE,
            seconds=job.seconds,
            requests=job.requests,
            tsc_khz=job.tsc_khz,
            seed=seed,
            wait=job.wait,
            cpus=job.vcpus,
            exits=job.exits,
        )
        path = job.folder / "script"
        path.write_bytes(script.initrd)
        code = Code.of(job.kernel)
        patience = job.seconds + PATIENCE_SECONDS
        with ExitStack() as stack:
            vms = [
                stack.enter_context(
                    watched(self._command(job, disk, path), self._kind, code, script, patience)
                )
                for disk in job.disks[: job.vms]
            ]
            placement = None if self._kind.places else job.placement
            used = _follow(vms, script, progress, placement)
            memory = [found for vm in vms if (found := vm.memory())]
            loads = [vm.finish() for vm in vms]
        samples = []
        for parts, before, after in zip(zip(*loads, strict=True), used, used[1:], strict=False):
            load, spent = reduce(add, parts), after - before
            samples.append(
                Sample.of_guest(load, job.tsc_khz, spent.whole - spent.vcpus, spent.whole)
            )
        return Run(
            tuple(samples),
            max(vm.start for vm in vms),
            middle(found.beyond for found in memory),
            memory[0].ram if memory else None,
        )


def _follow(
    vms: list[Vm], script: LoadScript, progress: Progress, placement: Placement | None
) -> list[CpuTime]:
    """Take all VMs to the last mark together, and return their processor time at each mark from 0.

    ``placement`` has the CPUs of their threads; None changes nothing.
    """
    used = []
    for number in range(-1, script.marks + 1):
        for vm in vms:
            vm.follow(number)
            if number < 0 and placement:
                vm.place(placement)
        if number >= 0:
            used.append(reduce(add, (vm.cpu_time() for vm in vms)))
        if number < script.marks:
            progress(max(number, 0))
            for vm in vms:
                vm.open_gate(number)
    return used
