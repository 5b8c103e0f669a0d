"""The script of the bare guest that carries out workloads, and what it leaves."""

from collections.abc import Callable, Sequence
from functools import reduce

from pykvm.bench.workload import BLOCK, Workload
from pykvm.devices.virtio_blk.constants import (
    SECTOR_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.errors import PykvmError
from pykvm.testing.bare import BlockDriver, Results, Script, ScriptError, Step, WaitMode
from pykvm.testing.bare.block import DEFAULT_FEATURES
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
FEATURES = DEFAULT_FEATURES | VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE
"""For a driver that knows no flush, a device makes every write durable (virtio 1.2 §5.2.6.2); one
that knows how to switch the cache keeps the mode that the disk was given."""
_PATTERN = 0x9E3779B97F4A7C15


class LoadScript:
    """A script for ``workloads`` one after the other on the first ``span`` sectors of one disk.

    Each lasts ``seconds``, or ``requests`` requests if that is not 0. ``seed``
    (not 0) chooses random places; ``tsc_khz`` is the guest's clock. ``wait``
    says how the guest waits for completions. Each of the ``queues`` has a
    vCPU that carries the workload out on it, at the same time as the others,
    in a part of the disk of its own. ``initrd`` is the script.
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
        queues: int = 1,
    ) -> None:
        assert queues == 1 or wait is WaitMode.POLL, "interrupts go to the first vCPU"
        self.marks = len(workloads)
        self._span = span // queues // 8 * 8
        self._requests = requests
        self._duration_us = 0 if requests else int(seconds * 1e6)
        self._seed = seed
        self._wait = wait
        main = Script()
        main.print(MARK + b"-1\n")
        msix = wait is not WaitMode.POLL
        BlockDriver(main).start(FEATURES, queues=queues, size=QUEUE_SIZE, msix=msix)
        needed = max(load_memory(w.depth, w.block // SECTOR_SIZE) for w in workloads)
        self._memory = [main.arena.allocate(needed, BLOCK) for _ in range(queues)]
        for address in self._memory:
            main.fill_memory(address, needed // 8 * 8, seed, _PATTERN)
        scripts = [main, *(Script(cpu, main.arena) for cpu in range(1, queues))]
        gates = [_Gates(main, scripts[1:]) for _ in workloads]
        self._steps: list[list[Step[LoadResult]]] = [[] for _ in workloads]
        for other in scripts[1:]:
            for gate, workload, steps in zip(gates, workloads, self._steps, strict=True):
                gate.wait_for_start(other)
                steps.append(self._load(other, workload))
                gate.has_ended(other)
            main.spawn(other)
        for number, (gate, workload) in enumerate(zip(gates, workloads, strict=True)):
            _mark(main, number, SETTLE_US)
            gate.start()
            self._steps[number].append(self._load(main, workload))
            gate.wait_for_end()
        _mark(main, self.marks, LAST_US)
        self.initrd = main.encode(tsc_khz)

    def _load(self, script: Script, workload: Workload) -> Step[LoadResult]:
        random = (self._seed * 4 + script.cpu) * _PATTERN % 2**63
        return script.load(
            VIRTIO_BLK_T_OUT if workload.write else VIRTIO_BLK_T_IN,
            total=self._requests or 2**32 - 1,
            duration_us=self._duration_us,
            timeout_us=self._duration_us + TIMEOUT_US,
            sectors=workload.block // SECTOR_SIZE,
            first=self._span * script.cpu,
            span=self._span,
            depth=workload.depth,
            random=random if workload.random else 0,
            indirect=True,
            wait=self._wait,
            queue=script.cpu,
            memory=self._memory[script.cpu],
        )

    def results(self, read: Callable[[int, int], bytes]) -> list[LoadResult]:
        """What each workload left in guest RAM, see :class:`Results`; PykvmError if one failed."""
        results = Results(read)
        try:
            found = [reduce(_together, (results[step] for step in steps)) for steps in self._steps]
        except ScriptError as error:
            raise PykvmError(f"the guest could not carry out the load: {error}") from None
        for result in found:
            if result.errors:
                raise PykvmError(
                    f"{result.errors} of {result.completed} requests failed",
                    "see whether the disk can be read and written",
                )
        return found


class _Gates:
    """Lets other vCPUs begin together with the first, and the first wait for their ends."""

    def __init__(self, main: Script, others: Sequence[Script]) -> None:
        self._main = main
        self._words = {
            other.cpu: (main.arena.allocate(64, 64), main.arena.allocate(64, 64))
            for other in others
        }

    # A round of ping-pong is all there is to a gate: turn 0 opens it, turn 1 waits.

    def start(self) -> None:
        """The first vCPU opens."""
        for begin, _ in self._words.values():
            self._main.ping_pong(begin, 0, 1, TIMEOUT_US)

    def wait_for_start(self, other: Script) -> None:
        """Another one waits."""
        other.ping_pong(self._words[other.cpu][0], 1, 1, TIMEOUT_US)

    def has_ended(self, other: Script) -> None:
        """Another one is through."""
        other.ping_pong(self._words[other.cpu][1], 0, 1, TIMEOUT_US)

    def wait_for_end(self) -> None:
        """The first vCPU waits for all."""
        for _, end in self._words.values():
            self._main.ping_pong(end, 1, 1, TIMEOUT_US)


def _together(one: LoadResult, other: LoadResult) -> LoadResult:
    """Two loads at the same time as one, which lasted as long as the longer."""
    return LoadResult(
        latencies=one.latencies + other.latencies,
        completed=one.completed + other.completed,
        errors=one.errors + other.errors,
        notifications=one.notifications + other.notifications,
        interrupts=one.interrupts + other.interrupts,
        ticks=max(one.ticks, other.ticks),
        latency_sum=one.latency_sum + other.latency_sum,
        latency_min=min(one.latency_min, other.latency_min),
        latency_max=max(one.latency_max, other.latency_max),
    )


def _mark(script: Script, number: int, pause_us: int) -> None:
    script.print(MARK + b"%d\n" % number)
    script.sleep(pause_us)
