"""``python -m soak.linux``: saves and restores Linux guests that use a disk."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from pykvm import EngineKind, PykvmError
from soak.linux.ledger import LedgerError
from soak.linux.trip import Traveller, Trip
from soak.scenario import Host

ROUNDS: Final = 10
PATIENCE: Final = 120.0


def engines(host: Host) -> tuple[EngineKind, ...]:
    """The engines that ``host`` has."""
    every = (EngineKind.SYNC, EngineKind.THREADS, EngineKind.IO_URING)
    return every if host.io_uring else every[:2]


def main() -> int:
    """Play trips. 0: no fault found. 1: a fault, and the last lines tell how to repeat it."""
    arguments = _parser().parse_args()
    first = int(time.time()) if arguments.seed is None else arguments.seed
    available = engines(Host.look())
    names = ", ".join(engine.value for engine in available)
    print(f"soak.linux: from seed {first} on, engines {names}", flush=True)
    seen: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(first, first + arguments.runs):
        if arguments.seconds and time.monotonic() - began > arguments.seconds:
            break
        trip = Trip.choose(seed, available)
        with tempfile.TemporaryDirectory() as folder:
            traveller = Traveller(trip, Path(folder), arguments.patience)
            try:
                traveller.run(arguments.rounds)
            except (LedgerError, PykvmError) as error:
                again = f"python -m soak.linux --seed {seed} --rounds {arguments.rounds}"
                print(f"soak.linux: FOUND SOMETHING\n{trip}\n{error}", file=sys.stderr)
                print(f"{json.dumps(traveller.seen)}\nagain: {again}", file=sys.stderr)
                return 1
        seen += traveller.seen
        print(f"{time.monotonic() - began:.0f} s: {trip}", flush=True)
    print(f"soak.linux: {seen['rounds']} rounds: nothing found")
    print(json.dumps(dict(sorted(seen.items()))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m soak.linux", description=__doc__)
    add = parser.add_argument
    add("--runs", type=int, default=1, help="number of trips (default: %(default)s)")
    add("--rounds", type=int, default=ROUNDS, help="snapshots in a trip (default: %(default)s)")
    add("--seed", type=int, help="seed of the first trip; others count up (default: the time)")
    add("--seconds", type=float, default=0, help="begin no trip after this time")
    add(
        "--patience",
        type=float,
        default=PATIENCE,
        help="seconds without progress that count as a failure (default: %(default)g)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
