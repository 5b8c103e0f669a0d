"""Chooses the parts of a scenario from its seed."""

from random import Random
from tempfile import NamedTemporaryFile
from typing import Any, Final, NamedTuple

from pykvm.devices.virtio_blk import (
    CacheMode,
    DetectZeroes,
    DiscardMode,
    EngineKind,
    ErrorPolicy,
    Image,
    MergePolicy,
)
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH
from pykvm.errors import UsageError
from pykvm.host import io_uring
from pykvm.virtio.constants import VIRTIO_F_VERSION_1
from soak.model import SECTOR

SWITCH_INTERVALS: Final = (1e-6, 1e-6, 1e-5, 1e-4, 0.005)
"""Python's switch intervals between threads, in seconds. The last one is Python's default."""
CACHES: Final = (*CacheMode, CacheMode.WRITEBACK, CacheMode.NONE, CacheMode.UNSAFE)
SHAKEN: Final = (
    *(
        "engines.thread_pool",
        "engines.thread_pool",
        "serving.event_loop",
        "serving.io_thread",
        "serving.io_thread_group",
        "device",
        "serving.queue_service",
        "core.scheduler",
    ),
    *("resizing", "write_cache", "core.throttle", "engines.base"),
    *("layers.faults", "layers.overlay", "image.file"),
)
STEP: Final = 8
"""Disk sizes are multiples of this number of sectors, which fits all block sizes of hosts."""
MOST_SECTORS: Final = 4096
LARGE_FILE: Final = 1 << 20
"""The largest size, in bytes, of each file of a snapshot with several files."""


class Host(NamedTuple):
    """The host's features that matter to scenarios."""

    io_uring: bool
    direct: bool

    @classmethod
    def look(cls) -> "Host":
        """The features of this host and its folder of temporary files."""
        with NamedTemporaryFile() as file:
            file.truncate(STEP * SECTOR)
            try:
                Image(file.name, cache=CacheMode.NONE).close()
                direct = True
            except UsageError:
                direct = False
        return cls(not io_uring.problem(), direct)


class Scenario(NamedTuple):
    """``disk``: arguments of DiskConfig. ``steps`` is the number of the driver's steps.

    ``transfer``: the largest operation in bytes, 0 for the host's limit.
    ``ragged``: the bytes missing from the last sector of a read-only image.
    ``cut``: its snapshot needs several files. ``holes``: the host can make holes and zeros.
    ``switch_interval`` (seconds) and ``shaken`` (a module's name or "", see
    :mod:`soak.shake`) decide how threads take turns.
    """

    seed: int
    disk: dict[str, Any]
    sectors: int
    steps: int
    transfer: int
    ragged: int
    cut: bool
    holes: bool
    switch_interval: float
    shaken: str

    def __str__(self) -> str:
        parts = [f"seed {self.seed}", f"{self.sectors} sectors", f"{self.steps} steps"]
        parts.append(f"transfer={self.transfer}, ragged={self.ragged}")
        parts.append(f"cut={self.cut}, holes={self.holes}")
        parts.append(f"switch interval {self.switch_interval:g} s")
        if self.shaken:
            parts.append(f"shaken: {self.shaken}")
        parts += [f"{name}={getattr(v, 'value', v)}" for name, v in self.disk.items()]
        return ", ".join(parts)


def choose(seed: int, host: Host, steps: int) -> Scenario:
    """The scenario of ``seed`` on ``host``."""
    dice = Random(f"soak {seed}")
    queues = dice.choice((1, 1, 2, 3, 4))
    cache = dice.choice(CACHES)
    engine = dice.choice((EngineKind.SYNC, EngineKind.THREADS, EngineKind.IO_URING))
    readonly = dice.random() < 0.06
    discard = dice.choice((DiscardMode.UNMAP, DiscardMode.UNMAP, DiscardMode.IGNORE))
    disk: dict[str, Any] = {
        "engine": engine,
        "cache": cache,
        "readonly": readonly,
        "snapshot": not readonly and dice.random() < 0.25,
        "serial": "soak-" + "0123456789abcdef"[: dice.randint(0, 15)],
        "queue_size": dice.choice((4, 8, 16, 16, 32, 64, 64, 256)),
        "num_queues": queues,
        "iothreads": dice.randint(1, queues),
        "packed": dice.random() < 0.5,
        "in_order": dice.random() < 0.4,
        "event_idx": dice.random() < 0.8,
        "indirect_desc": dice.random() < 0.8,
        "merge": dice.choice(list(MergePolicy)),
        "merge_max": dice.choice((1, 2, 7, 32, 32, 1024)),
        "poll_max_ns": dice.choice((0, 0, 1000, 32_768, 1_000_000)),
        "rerror": dice.choice(list(ErrorPolicy)),
        "werror": dice.choice((*ErrorPolicy, ErrorPolicy.STOP)),
        "discard": discard,
        "write_zeroes": dice.random() < 0.9,
        "detect_zeroes": dice.choice(_detect(discard)),
        "logical_block_size": dice.choice((0, 0, 0, 0, 512, 4096)),
    }
    if engine is EngineKind.IO_URING and not host.io_uring:
        disk["engine"] = EngineKind.THREADS
    if cache.direct and not host.direct:
        disk["cache"] = CacheMode.WRITEBACK if cache.writeback else CacheMode.WRITETHROUGH
    sectors = STEP * dice.choice((2, 8, 32, 64, 64, 128))
    transfer = dice.choice((0, 0, SECTOR, 2 * SECTOR, 8 * SECTOR))
    whole = disk["logical_block_size"] == 4096 or disk["cache"].direct
    ragged = dice.choice((0, 1, 511)) if readonly and not whole else 0
    cut = disk["snapshot"] and dice.random() < 0.2
    if cut:
        sectors = LARGE_FILE // SECTOR * 3 // 2
    interval = dice.choice(SWITCH_INTERVALS)
    shaken = dice.choice(SHAKEN) if dice.random() < 0.4 else ""
    if shaken and disk["engine"] is not EngineKind.SYNC and dice.random() < 0.5:
        shaken = "engines.thread_pool"
    holes = dice.random() < 0.8
    return Scenario(seed, disk, sectors, steps, transfer, ragged, cut, holes, interval, shaken)


def negotiate(dice: Random, offered: int) -> int:
    """A random valid choice of the ``offered`` features."""
    features = VIRTIO_F_VERSION_1
    for bit in range(64):
        if offered >> bit & 1 and dice.random() < 0.85:
            features |= 1 << bit
    if not features & VIRTIO_BLK_F_FLUSH:
        features &= ~VIRTIO_BLK_F_CONFIG_WCE
    return features


def _detect(discard: DiscardMode) -> tuple[DetectZeroes, ...]:
    most = DetectZeroes.UNMAP if discard is DiscardMode.UNMAP else DetectZeroes.ON
    return DetectZeroes.OFF, DetectZeroes.OFF, DetectZeroes.ON, most
