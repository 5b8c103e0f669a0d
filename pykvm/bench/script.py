"""The script of the bare guest that carries out workloads, and what it leaves."""

from collections.abc import Callable, Sequence

from pykvm.bench.workload import BLOCK, Workload
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.errors import PykvmError
from pykvm.testing.bare import BlockDriver, Results, Script, ScriptError, WaitMode
from pykvm.testing.bare.results import LoadResult
from pykvm.testing.bare.script import load_memory

MARK = b"mark "
"""The guest prints a line of this and a number: -1 as its first act, i before workload i, and
the number of workloads after the last."""
SETTLE_US = 5000
"""The guest does nothing for so long after each mark, so that counters can be read."""
LAST_US = 300_000
"""And for so long after the last one, for more to look at."""
TIMEOUT_US = 60_000_000
"""For one workload, beyond its time: the slowest disks answer sooner."""
QUEUE_SIZE = 128
_PATTERN = 0x9E3779B97F4A7C15


class LoadScript:
    """A script for ``workloads`` one after the other on the first ``span`` sectors of one disk.

    Each lasts ``seconds``, or ``requests`` requests if that is not 0. ``seed``
    (not 0) chooses random places; ``tsc_khz`` is the guest's clock. ``wait``
    says how the guest waits for completions. ``initrd`` is the script.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        *,
        span: int,
        seconds: float,
        tsc_khz: int,
        requests: int = 0,
        seed: int = 1,
        wait: WaitMode = WaitMode.POLL,
    ) -> None:
        self.marks = len(workloads)
        script = Script()
        script.print(MARK + b"-1\n")
        BlockDriver(script).start(size=QUEUE_SIZE, msix=wait is not WaitMode.POLL)
        needed = max(load_memory(w.depth, w.block // SECTOR_SIZE) for w in workloads)
        memory = script.arena.allocate(needed, BLOCK)
        script.fill_memory(memory, needed // 8 * 8, seed, _PATTERN)
        self._steps = []
        for number, workload in enumerate(workloads):
            _mark(script, number, SETTLE_US)
            self._steps.append(
                script.load(
                    VIRTIO_BLK_T_OUT if workload.write else VIRTIO_BLK_T_IN,
                    total=requests or 2**32 - 1,
                    duration_us=0 if requests else int(seconds * 1e6),
                    timeout_us=min(int(seconds * 1e6) + TIMEOUT_US, 2**32 - 1),
                    sectors=workload.block // SECTOR_SIZE,
                    span=span,
                    depth=workload.depth,
                    random=seed * _PATTERN % 2**63 if workload.random else 0,
                    indirect=True,
                    wait=wait,
                    memory=memory,
                )
            )
        _mark(script, self.marks, LAST_US)
        self.initrd = script.encode(tsc_khz)

    def results(self, read: Callable[[int, int], bytes]) -> list[LoadResult]:
        """What each workload left in guest RAM, see :class:`Results`; PykvmError if one failed."""
        results = Results(read)
        try:
            found = [results[step] for step in self._steps]
        except ScriptError as error:
            raise PykvmError(f"the guest could not carry out the load: {error}") from None
        for result in found:
            if result.errors:
                raise PykvmError(
                    f"{result.errors} of {result.completed} requests failed",
                    "see whether the disk can be read and written",
                )
        return found


def _mark(script: Script, number: int, pause_us: int) -> None:
    script.print(MARK + b"%d\n" % number)
    script.sleep(pause_us)
