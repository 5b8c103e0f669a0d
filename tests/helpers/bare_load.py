"""A load for the bare guest that shows whether a request was lost, doubled or reordered."""

import random
import zlib
from dataclasses import dataclass

from bare_owner import COUNTED
from patience import PATIENCE

from pykvm.bare import BlockDriver, BlockRequest, RecordError, Results, Script, WaitMode
from pykvm.bare.block import DEFAULT_FEATURES, Batch
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN

SECTORS = 512
ROUNDS = 100
TIMEOUT_US = int(1e6 * PATIENCE)
"""For the guest: its clock goes on while it is stopped."""


@dataclass(frozen=True)
class Round:
    """A posted batch, and the expected result of each request: the CRC of a read, else 0."""

    batch: Batch
    lengths: list[int]
    crcs: list[int]


class Load:
    """A script of random batches, with a model of the disk that they shall leave."""

    def __init__(
        self,
        seed: int,
        *,
        rounds: int = ROUNDS,
        features: int = DEFAULT_FEATURES,
        msix: bool = True,
    ) -> None:
        self.script = Script()
        self.model = bytearray(SECTORS * 512)
        self.counts = dict.fromkeys(COUNTED, 0)
        self._dice = random.Random(seed)
        driver = BlockDriver(self.script)
        driver.start(features, msix=msix, intx=not msix)
        self.rounds = [self._round(driver) for _ in range(rounds)]
        self.silence = self.script.wait(1, timeout_us=10_000)
        self.script.exit(0)

    def _round(self, driver: BlockDriver) -> Round:
        """Up to 16 requests, often side by side, sometimes over each other."""
        requests, lengths, crcs = [], [], []
        sector = 0
        for _ in range(self._dice.randint(4, 16)):
            if self._dice.random() < 0.25:
                sector = self._dice.randrange(SECTORS)
            size = 512 * self._dice.randint(1, 3)
            sector = min(sector, SECTORS - size // 512)
            request, crc = self._request(sector, size)
            requests.append(request)
            lengths.append(1 + (size if request.type == VIRTIO_BLK_T_IN else 0))
            crcs.append(crc)
            sector += size // 512
        wait = self._dice.choice((WaitMode.POLL, WaitMode.IDLE))
        batch = driver.submit(requests, wait=wait, timeout_us=TIMEOUT_US)
        return Round(batch, lengths, crcs)

    def _request(self, sector: int, size: int) -> tuple[BlockRequest, int]:
        kind = self._dice.choices(("rd", "wr", "flush"), (8, 10, 1))[0]
        self.counts[f"{kind}_operations"] += 1
        if kind == "flush":
            return BlockRequest.flush(), 0
        self.counts[f"{kind}_bytes"] += size
        span = slice(sector * 512, sector * 512 + size)
        if kind == "rd":
            return BlockRequest.read(sector, size, hashed=True), zlib.crc32(self.model[span])
        self.model[span] = data = self._dice.randbytes(size)
        return BlockRequest.write(sector, data), 0

    def check(self, results: Results) -> None:
        """Each request completed once, and as it should."""
        for round_ in self.rounds:
            assert round_.batch.wait is not None
            tags = [done.tag for done in results[round_.batch.wait].completions]
            assert sorted(tags) == sorted(placed.tag for placed in round_.batch.requests)
            outcomes = round_.batch.outcomes(results)
            assert [outcome.status for outcome in outcomes] == [0] * len(outcomes)
            assert [outcome.length for outcome in outcomes] == round_.lengths
            assert [outcome.crc for outcome in outcomes] == round_.crcs
        assert results.record(self.silence).error is RecordError.TIMEOUT
        assert results.whatever(self.silence).completions == ()
