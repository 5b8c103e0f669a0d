"""A guest with a witness, which is saved, restored, forked and put back again and again."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import pykvm
from pykvm import DiskConfig, EngineKind, ErrorPolicy, Fault, FaultPlan, Guest, RateLimits, Snapshot
from soak.linux.ledger import DISK_BYTES, Ledger, LedgerError
from soak.linux.witness import Witness

LONGEST_WAIT: Final = 0.25
"""Seconds between two moves."""
_TROUBLE: Final = (
    "I/O error",
    "is not a head",
    "out of range",
    "BUG",
    "Oops",
    "blocked for",
    "lockup",
)


class Trip(NamedTuple):
    """The disk of a trip, and the seed of its moves."""

    seed: int
    packed: bool
    in_order: bool
    engine: EngineKind
    kind: str
    """``blank``, ``overlay`` over an image, or ``image``: written directly."""
    segments: int | None
    """The most segments in one request. Few of them make many requests."""
    limited: bool
    late: bool
    """Some operations take long, or come back short."""

    @classmethod
    def choose(cls, seed: int, engines: "tuple[EngineKind, ...]") -> "Trip":
        """The trip with this seed. Consecutive seeds cover all rings with all ``engines``."""
        dice = Random(seed)
        return cls(
            seed,
            packed=bool(seed % 2),
            in_order=dice.random() < 0.3,
            engine=engines[seed // 2 % len(engines)],
            kind=dice.choice(("blank", "overlay", "overlay", "image")),
            segments=dice.choice((None, 2, 4)),
            limited=dice.random() < 0.2,
            late=dice.random() < 0.5,
        )

    def disk(self, image: Path) -> DiskConfig:
        """The configuration of the disk, whose image is ``image`` if it has one."""
        options: dict[str, Any] = {
            "packed": self.packed,
            "in_order": self.in_order,
            "engine": self.engine,
            "rerror": ErrorPolicy.STOP,
            "werror": ErrorPolicy.STOP,
        }
        if self.segments is not None:
            options["seg_max"] = self.segments
        if self.limited:
            options["limits"] = RateLimits(iops=400)
        if self.late:
            late = Fault(delay_ms=5, probability=0.3)
            short = Fault(operation="write", short=1024, probability=0.1)
            options["faults"] = FaultPlan([late, short], seed=self.seed)
        if self.kind == "blank":
            return DiskConfig(blank=DISK_BYTES, **options)
        image.write_bytes(bytes(DISK_BYTES))
        return DiskConfig(image, snapshot=self.kind == "overlay", **options)


class Traveller:
    """Carries out the moves of ``trip`` in ``folder``. ``seen`` counts events."""

    def __init__(self, trip: Trip, folder: Path, patience: float) -> None:
        self.seen: Counter[str] = Counter()
        self._trip = trip
        self._folder = folder
        self._patience = patience
        self._dice = Random(trip.seed)
        self._image = folder / "disk.img"
        self._config = trip.disk(self._image)
        self._moves: list[Callable[[Guest, Snapshot, Ledger], Guest]] = [self._restore, self._open]
        if trip.kind != "image":  # an image cannot go back
            self._moves += [self._restore, self._reset, self._reset, self._fork, self._go_on]

    def run(self, rounds: int) -> None:
        """Boot a guest, and save it ``rounds`` times. LedgerError if anything is lost."""
        guest = pykvm.boot(disks=[self._config], timeout=self._patience)
        try:
            self._witness = Witness(guest, self._dice.getrandbits(63), self._patience)
            for _ in range(rounds):
                guest = self._round(guest)
            self._end(guest)
        finally:
            guest.close()

    def _round(self, guest: Guest) -> Guest:
        """Save ``guest`` at some moment, make a move, and return the guest that goes on."""
        self._sleep()
        if self._dice.random() < 0.3:
            self._strike(guest)
        elif self._trip.kind == "image" or self._dice.random() < 0.2:
            guest.pause()
        with guest.snapshot() as snapshot:
            saved = self._witness.saved(snapshot.saved)
            self.seen["rounds"] += 1
            self.seen["blocks in flight"] += saved.in_flight
            self.seen["snapshots of a stopped guest"] += snapshot.saved.failed
            move = self._dice.choice(self._moves)
            self.seen[move.__name__.strip("_")] += 1
            moved: Guest = move(guest, snapshot, saved)
        return moved

    def _strike(self, guest: Guest) -> None:
        """Let requests fail, from one of the next on, until that has stopped the guest."""
        operation = self._dice.choice(("any", "read", "write", "flush"))
        errno = self._dice.choice(("EIO", "ENOSPC"))
        faults = guest.disks[0].faults
        # A single failure could hit merged requests, which are then tried one by one.
        rule = faults.add(Fault(operation=operation, errno=errno, nth=self._dice.randint(1, 3)))
        guest.wait_stopped()
        faults.remove(rule)
        self.seen["stops"] += 1

    # -- moves: each returns the guest that goes on, with which all is well ---------

    def _restore(self, guest: Guest, snapshot: Snapshot, saved: Ledger) -> Guest:
        early = self._trip.kind == "image" or self._dice.random() < 0.5
        if early:
            guest.close()
        restored = snapshot.restore()
        guest.close()
        return self._settled(restored, saved)

    def _open(self, guest: Guest, snapshot: Snapshot, saved: Ledger) -> Guest:
        """By way of a folder."""
        folder = self._folder / f"saved-{self.seen['rounds']}"
        snapshot.save(folder)
        guest.close()
        disks = None if self._trip.kind == "blank" else [self._config]
        with Snapshot.open(folder, disks=disks, timeout=self._patience) as opened:
            opened.verify()
            restored = opened.restore()
        return self._settled(restored, saved)

    def _reset(self, guest: Guest, snapshot: Snapshot, saved: Ledger) -> Guest:
        guest.resume()
        for _ in range(self._dice.randint(1, 2)):
            self._sleep()
            guest.reset(snapshot)
            self.seen["resets"] += 1
        return self._settled(guest, saved)

    def _fork(self, guest: Guest, snapshot: Snapshot, saved: Ledger) -> Guest:
        guest.resume()
        guests: list[Guest] = [guest, *snapshot.fork(2)]
        chosen: Guest = self._dice.choice(guests)
        for one in guests:
            self._settled(one, saved)
        for one in guests:
            if one is not chosen:
                one.close()
        return chosen

    def _go_on(self, guest: Guest, snapshot: Snapshot, saved: Ledger) -> Guest:
        guest.resume()
        return self._settled(guest, saved)

    def _settled(self, guest: Guest, saved: Ledger) -> Guest:
        try:
            self._witness.wait_for_more(guest, saved)
            now = self._witness.look(guest, saved)
        except BaseException:
            guest.close()
            raise
        self.seen["guests"] += 1
        self.seen["calls"] += sum(now.calls) - sum(saved.calls)
        return guest

    def _end(self, guest: Guest) -> None:
        trouble = [line for line in guest.dmesg().splitlines() if any(t in line for t in _TROUBLE)]
        guest.pause()
        ledger = self._witness.ledger(guest)
        guest.close()
        if self._trip.kind == "image":
            ledger.check_disk(self._image.read_bytes())
        elif self._trip.kind == "overlay" and any(self._image.read_bytes()):
            raise LedgerError("the image below the overlay has changed")
        if trouble:
            raise LedgerError(f"the guest's kernel complains: {trouble}")

    def _sleep(self) -> None:
        time.sleep(self._dice.random() * LONGEST_WAIT)
