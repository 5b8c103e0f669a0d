"""The script by which the bare guest carries out workloads, and its results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from pykvm.bare import BlockDriver, Results, Script, ScriptError, Step, WaitMode
from pykvm.bare.block import DEFAULT_FEATURES
from pykvm.bare.results import LoadResult
from pykvm.bare.script import load_memory
from pykvm.bench.disk.workload import BLOCK, EXITS, Workload
from pykvm.devices.virtio_blk.constants import (
    SECTOR_SIZE,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.errors import PykvmError

MARK = b"mark "
"""The guest prints lines of this word and a number: -1 first of all, i before workload i, and the
number of workloads after the last one. After each it waits at a gate, see :class:`LoadScript`."""
OPEN = (1).to_bytes(8, "little")
"""The bytes that open a gate."""
TIMEOUT_US = 60_000_000
"""A workload may take this much longer than its time. The slowest disks answer sooner."""
QUEUE_SIZE = 128
_PATTERN = 0x9E3779B97F4A7C15


class LoadScript:
    """A script that carries out ``workloads``, one after the other, on the first ``span`` sectors.

    Each workload lasts ``seconds``, or ``requests`` requests of each queue if that is not 0.
    ``seed`` (not 0) chooses random places. ``tsc_khz`` is the frequency of the guest's clock.
    ``wait`` says how the guest waits for completions. All workloads have the same number of
    queues, and each queue has a separate part of the disk. ``cpus`` vCPUs share out the queues.
    With ``exits``, a waiting vCPU reads a register of the device.

    ``initrd`` is the script. After each MARK the guest waits until the host has written OPEN to
    the next address in ``gates``, which is in the guest's RAM.
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
        cpus: int = 1,
        exits: bool = False,
    ) -> None:
        assert cpus == 1 or wait is WaitMode.POLL, "interrupts go to the first vCPU"
        queues = workloads[0].queues
        self.marks = len(workloads)
        self.gates: list[int] = []
        self._span = span // queues // 8 * 8
        self._requests = requests
        self._duration_us = int(seconds * 1e6)
        self._seed = seed
        self._wait = wait
        self._exits = exits
        self._main = main = Script()
        self._mark(-1)
        msix = wait is not WaitMode.POLL
        BlockDriver(main).start(DEFAULT_FEATURES, queues=queues, size=QUEUE_SIZE, msix=msix)
        scripts = [main, *(Script(cpu, main.arena) for cpu in range(1, cpus))]
        shares = [_Share(queues * i // cpus, queues * (i + 1) // cpus) for i in range(cpus)]
        for share in shares:
            share.allocate(main, workloads, seed)
        gates = [_Gates(main, scripts[1:]) for _ in workloads]
        self._steps: list[list[Step[LoadResult]]] = [[] for _ in workloads]
        for other, share in zip(scripts[1:], shares[1:], strict=True):
            for gate, workload, steps in zip(gates, workloads, self._steps, strict=True):
                gate.wait_for_start(other)
                steps.append(self._load(other, workload, share))
                gate.has_ended(other)
            main.spawn(other)
        for number, (gate, workload) in enumerate(zip(gates, workloads, strict=True)):
            self._mark(number)
            gate.start()
            self._steps[number].append(self._load(main, workload, shares[0]))
            gate.wait_for_end()
        self._mark(self.marks)
        self.initrd = main.encode(tsc_khz)

    def _mark(self, number: int) -> None:
        self._main.print(MARK + b"%d\n" % number)
        self.gates.append(self._main.arena.allocate(64, 64))
        # A gate is one round of ping-pong: the guest has turn 1 and waits for turn 0.
        self._main.ping_pong(self.gates[-1], 1, 1, TIMEOUT_US)

    def _load(self, script: Script, workload: Workload, share: "_Share") -> Step[LoadResult]:
        random = (self._seed * 4 + script.cpu) * _PATTERN % 2**63
        counted = self._requests and workload.depth
        duration_us = 0 if counted else self._duration_us
        return script.load(
            VIRTIO_BLK_T_OUT if workload.write else VIRTIO_BLK_T_IN,
            total=self._requests if counted else 2**32 - 1,
            duration_us=duration_us,
            timeout_us=duration_us + TIMEOUT_US,
            sectors=workload.block // SECTOR_SIZE,
            first=self._span * share.first,
            span=self._span,
            depth=workload.depth,
            segments=workload.segments,
            random=random if workload.random else 0,
            indirect=True,
            wait=self._wait,
            exits=self._exits or workload.kind == EXITS,
            queue=share.first,
            queues=share.end - share.first,
            memory=share.memory,
        )

    def results(self, read: Callable[[int, int], bytes]) -> list[LoadResult]:
        """The result of each workload; PykvmError if one failed. ``read`` is as in Results."""
        results = Results(read)
        try:
            found = [reduce(add, (results[step] for step in steps)) for steps in self._steps]
        except ScriptError as error:
            raise PykvmError(f"the guest could not carry out the load: {error}") from None
        for result in found:
            if result.errors:
                raise PykvmError(
                    f"{result.errors} of {result.completed} requests failed",
                    "check that the disk can be read and written",
                )
        return found


@dataclass(slots=True)
class _Share:
    """The queues ``first`` to ``end - 1`` of one vCPU, and the address of its loads' ``memory``."""

    first: int
    end: int
    memory: int = 0

    def allocate(self, main: Script, workloads: Sequence[Workload], seed: int) -> None:
        """Allocate memory that suffices for each of ``workloads``, and fill it with a pattern."""
        queues = self.end - self.first
        needed = max(
            load_memory(w.depth * queues, w.block // SECTOR_SIZE, w.segments) for w in workloads
        )
        self.memory = main.arena.allocate(needed, BLOCK)
        main.fill_memory(self.memory, needed // 8 * 8, seed, _PATTERN)


class _Gates:
    """Makes all vCPUs begin together, and the first vCPU wait for the end of the others."""

    def __init__(self, main: Script, others: Sequence[Script]) -> None:
        self._main = main
        self._words = {
            other.cpu: (main.arena.allocate(64, 64), main.arena.allocate(64, 64))
            for other in others
        }

    def start(self) -> None:
        """The first vCPU opens the gates of the others."""
        for begin, _ in self._words.values():
            self._main.ping_pong(begin, 0, 1, TIMEOUT_US)

    def wait_for_start(self, other: Script) -> None:
        """The vCPU of ``other`` waits for its gate."""
        other.ping_pong(self._words[other.cpu][0], 1, 1, TIMEOUT_US)

    def has_ended(self, other: Script) -> None:
        """The vCPU of ``other`` has finished."""
        other.ping_pong(self._words[other.cpu][1], 0, 1, TIMEOUT_US)

    def wait_for_end(self) -> None:
        """The first vCPU waits for all others."""
        for _, end in self._words.values():
            self._main.ping_pong(end, 1, 1, TIMEOUT_US)
