"""Checks the whole disk while no request is in flight. AssertionError for a fault."""

import os
from pathlib import Path

from pykvm.devices.virtio_blk import VirtioBlk
from soak.model import SECTOR, Model, explains
from soak.tally import Announced, Tally


class Inspector:
    """Owns a descriptor of the disk's file. ``apart``: the file must never change."""

    def __init__(self, path: Path, model: Model, tally: Tally, announced: Announced, apart: bool):
        self._path = path
        self._model = model
        self._tally = tally
        self._announced = announced
        self._apart = apart
        self._first = path.read_bytes()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def inspect(self, device: VirtioBlk, lost: int) -> None:
        """Check counters, configuration, and every sector. ``lost``: requests without an answer."""
        if self._model.resizing_now:
            return
        self._tally.check(device.stats.counters())
        capacity = int.from_bytes(device.config[:8], "little")
        assert capacity == self._model.capacity, f"the capacity is {capacity} sectors"
        left = self._announced.unanswered
        assert left <= lost, f"{left} errors were announced, and not answered"
        if self._apart:
            return
        content = os.pread(self._fd, self._model.capacity * SECTOR, 0)
        assert len(content) == self._model.capacity * SECTOR, f"it has {len(content)} bytes"
        observer = self._model.observer()
        for sector in range(self._model.capacity):
            found = content[sector * SECTOR : (sector + 1) * SECTOR]
            possible = self._model.possible(observer, sector)
            assert explains(possible, found), (
                f"sector {sector} of the file holds {found[:8].hex()}…, "
                f"and not {' or '.join(content[:8].hex() for content in possible)}"
            )
            self._model.settle(sector, found)

    def close(self) -> None:
        """Close the file. AssertionError if it changed and must not."""
        os.close(self._fd)
        if self._apart:
            assert self._path.read_bytes() == self._first, "the image below was written"
