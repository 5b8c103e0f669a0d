"""``python -m soak``: plays random scenarios until one fails or the time is over."""

import argparse
import json
import sys
import time
from collections import Counter
from tempfile import gettempdir
from typing import Final

from pykvm.virtio import split
from soak.run import SoakFailure, play
from soak.scenario import Host, Scenario, choose

STEPS: Final = 80
"""Steps of the driver in one scenario: some hundred requests, in some tenths of a second."""
PATIENCE: Final = 30.0
"""Seconds without an answer after which no answer will come, even on a busy host."""
REDRAW: Final = 0.2


def main() -> int:
    """Play scenarios. 0: no fault found. 1: a fault, and the last lines tell how to repeat it."""
    arguments = _parser().parse_args()
    first = int(time.time()) if arguments.seed is None else arguments.seed
    runs = arguments.runs or (0 if arguments.seconds else 1)
    host = Host.look()
    form = "interpreted" if (split.__file__ or "").endswith(".py") else "compiled"
    print(f"soak: from seed {first} on, hot path {form}, {_features(host)}", flush=True)
    seen: Counter[str] = Counter()
    began = drawn = time.monotonic()
    done = 0
    while (not runs or done < runs) and not _over(began, arguments.seconds):
        seed = first if arguments.same else first + done
        scenario = choose(seed, host, arguments.steps)
        try:
            seen += play(scenario, arguments.patience)
        except SoakFailure as failure:
            _show()
            _report(scenario, failure, arguments.steps)
            return 1
        except KeyboardInterrupt:
            break
        done += 1
        if sys.stderr.isatty() and time.monotonic() - drawn > REDRAW:
            drawn = time.monotonic()
            _show(_line(done, seen, drawn - began))
    _show()
    print(f"soak: {_line(done, seen, time.monotonic() - began)}: nothing found")
    print(json.dumps(dict(sorted(seen.items()))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=0, help="begin no scenario after this time")
    add("--runs", type=int, default=0, help="number of scenarios (default: 1, or as time allows)")
    add("--seed", type=int, help="seed of the first scenario; others count up (default: the time)")
    add("--same", action="store_true", help="play the first scenario each time, to hit a race")
    add("--steps", type=int, default=STEPS, help="steps of each driver (default: %(default)s)")
    add(
        "--patience",
        type=float,
        default=PATIENCE,
        help="seconds without an answer that count as a failure (default: %(default)g)",
    )
    return parser


def _over(began: float, seconds: float) -> bool:
    return bool(seconds) and time.monotonic() - began >= seconds


def _features(host: Host) -> str:
    return (
        f"{'with' if host.io_uring else 'without'} io_uring, "
        f"{'with' if host.direct else 'without'} O_DIRECT in {gettempdir()}"
    )


def _line(done: int, seen: Counter[str], seconds: float) -> str:
    answered = seen["answered"]
    rate = answered / seconds if seconds else 0
    return (
        f"{done} scenarios, {answered} requests answered ({rate:.0f}/s), "
        f"{seen['lost']} lost in resets, {seen['stops']} stops, {seconds:.0f} s"
    )


def _show(line: str = "") -> None:
    """Show ``line`` as the progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _report(scenario: Scenario, failure: SoakFailure, steps: int) -> None:
    print(f"soak: FOUND SOMETHING\n{scenario}\n{failure}", file=sys.stderr)
    again = f"python -m soak --seed {scenario.seed} --steps {steps} --same --runs 100"
    print(f"again: {again}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
