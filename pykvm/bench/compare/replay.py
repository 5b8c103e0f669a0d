"""Sends a stream of requests to a disk from the bare-metal guest."""

from collections.abc import Iterable
from struct import pack

from pykvm.bare import BlockDriver, Chain, Script, Segment
from pykvm.bare.results import Step, WaitResult
from pykvm.bare.run import run_script
from pykvm.bench.compare.report import Sample
from pykvm.bench.compare.stream import BLOCK, Batch
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.observe.stats import CLASSIC
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import PykvmError
from pykvm.machine.outcome import OutcomeKind

_TYPES = {"read": VIRTIO_BLK_T_IN, "write": VIRTIO_BLK_T_OUT, "flush": VIRTIO_BLK_T_FLUSH}
_SECTORS = BLOCK // 512
_IN_FLIGHT = 64
_SECONDS = 120.0


class Replay:
    """A script that posts each batch at once, and waits for all of it before the next one."""

    def __init__(self, batches: Iterable[Batch], tsc_khz: int) -> None:
        self._script = script = Script()
        self._tsc_khz = tsc_khz
        driver = BlockDriver(script)
        driver.start(size=256)
        arena = script.arena
        self._headers = arena.allocate(16 * _IN_FLIGHT)
        self._statuses = arena.allocate(_IN_FLIGHT)
        self._tables = arena.allocate(64 * _IN_FLIGHT)
        self._data = arena.allocate(BLOCK * _IN_FLIGHT, 4096)
        script.fill_memory(self._data, BLOCK * _IN_FLIGHT, 0x1234567)
        self._waits: list[Step[WaitResult]] = []
        self._requests = 0
        for batch in batches:
            self._post(batch)

    def _post(self, batch: Batch) -> None:
        headers = b"".join(pack("<IIQ", _TYPES[r.kind], 0, r.block * _SECTORS) for r in batch)
        self._script.write_memory(self._headers, headers)
        chains = []
        for place, request in enumerate(batch):
            segments = [Segment(self._headers + 16 * place, 16)]
            if request.kind != "flush":
                data = self._data + BLOCK * place
                segments.append(Segment(data, BLOCK, request.kind == "read"))
            segments.append(Segment(self._statuses + place, 1, True))
            chains.append(Chain(place + 1, segments, self._tables + 64 * place))
        self._script.post(chains)
        self._waits.append(self._script.wait(len(batch)))
        self._requests += len(batch)

    def run(self, disk: DiskConfig) -> Sample:
        """Run it on ``disk``. PykvmError if the guest does not reach the end."""
        done = run_script(self._script, [disk], timeout=_SECONDS)
        counters = done.disks[0]
        if done.outcome.kind is not OutcomeKind.POWER_OFF or done.outcome.status:
            raise PykvmError(f"the bare-metal guest failed: {done.outcome.reason or done.outcome}")
        for wait in self._waits:
            done.results[wait]  # ScriptError if it ran into its limit of time
        served = sum(counters[f"{kind}_operations"] for kind in ("rd", "wr", "flush"))
        if served != self._requests:
            raise PykvmError(
                f"the disk served {served} of {self._requests} requests",
                "look at the disk's options: it may be read-only, too small, or have faults",
            )
        begin = done.results.record(self._waits[0]).begin
        end = done.results.record(self._waits[-1]).end
        seconds = (end - begin) / self._tsc_khz / 1000
        return Sample(seconds, {name: counters[name] for name in CLASSIC})
