"""``python -m fuzz``: runs every target under libFuzzer for a given time, and reports.

Inputs that it learnt stay in build/fuzz/, and the next run continues with them.
"""

import argparse
import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

from fuzz.targets import TARGETS
from pykvm.errors import PykvmError, UsageError
from pykvm.virtio import split

ROOT = Path(__file__).parent
WORK = ROOT.parent / "build" / "fuzz"
SHARES = {"disk": 5, "pci": 4, "parsers": 1}
"""Each target's share of the time."""
INPUT_TIMEOUT, MEMORY_MIB, LONGEST = 30, 1024, 512
"""Limits for one input: seconds (on a loaded machine), MiB of memory, and its length."""

_PROGRESS = re.compile(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+).*?exec/s: (\d+)", re.MULTILINE)


def main() -> int:
    """The exit status: 0 if nothing was found, 1 if something was, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=3600, help="for all targets (default: %(default)s)"
    )
    parser.add_argument("--play", nargs=2, metavar=("TARGET", "FILE"), help="run one input once")
    arguments = parser.parse_args()
    if arguments.play:
        name, file = arguments.play
        TARGETS[name](Path(file).read_bytes())
        return 0
    try:
        _check()
    except PykvmError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return error.exit_status
    try:
        found = [
            fuzz(name, arguments.seconds * SHARES[name] // sum(SHARES.values())) for name in SHARES
        ]
    except KeyboardInterrupt:
        print(f"fuzz: ended by Ctrl-C; the next run continues from {WORK}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 1 if any(found) else 0


def fuzz(name: str, seconds: int) -> bool:
    """Run libFuzzer on a target for ``seconds``, and print a line; True if it found anything."""
    learnt = WORK / name
    learnt.mkdir(parents=True, exist_ok=True)
    log = WORK / f"{name}.log"
    command = [
        *(sys.executable, "-m", "fuzz.child", name),
        *(f"-max_total_time={max(1, seconds)}", f"-timeout={INPUT_TIMEOUT}"),
        *(f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={LONGEST}", "-len_control=0"),
        *("-print_final_stats=1", f"-artifact_prefix={WORK}/{name}-"),
        *(str(learnt), str(ROOT / "corpus" / name)),
    ]
    with log.open("wb") as out:
        status = subprocess.run(command, cwd=ROOT.parent, stderr=out, stdout=out, check=False)
    said = log.read_text(errors="replace")
    executions, edges, features, rate = (_PROGRESS.findall(said) or [("0", "0", "0", "0")])[-1]
    result = "nothing found" if not status.returncode else "FOUND SOMETHING"
    print(
        f"{name}: {executions} executions ({rate}/s), {edges} edges, {features} features: {result}",
        flush=True,
    )
    if status.returncode:
        print(_tail(said), file=sys.stderr)
        print(
            f"again: python -m fuzz --play {name} FILE (from {WORK})",
            file=sys.stderr,
        )
    return status.returncode != 0


def _check() -> None:
    """UsageError if fuzzing is impossible here."""
    if not (split.__file__ or "").endswith(".py"):
        raise UsageError(
            "the fuzzer cannot follow a compiled hot path",
            "run 'make interpreted'",
        )
    if importlib.util.find_spec("atheris") is None:
        raise UsageError("atheris is not installed", "run 'make fuzz', which installs it")


def _tail(said: str) -> str:
    """The end of libFuzzer's output, from Python's report of the exception on."""
    start = said.rfind("=== Uncaught Python exception")
    return said[start if start >= 0 else -4000 :][:4000]


if __name__ == "__main__":
    sys.exit(main())
