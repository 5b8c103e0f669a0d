"""Measures the time from the start of a tool's process to the guest's first words."""

import os
import selectors
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import join
from statistics import median
from typing import Final

from pykvm.bench.columns import align
from pykvm.bench.disk.tools.child import last_words, running
from pykvm.bench.disk.tools.pykvm_tool import boot_command, form
from pykvm.bench.disk.tools.qemu import qemu_program
from pykvm.bench.disk.tools.qemu_cpu import (
    MODE,
    PATIENCE_SECONDS,
    WORDS,
    cpu_model,
    qemu_command,
    qemu_note,
)
from pykvm.errors import PykvmError

MACHINES: Final = ("microvm", "pc", "q35")
"""QEMU's machines: the smallest, the default and the modern one."""


@dataclass(slots=True)
class Start:
    """One tool's command line, and the seconds of each run. ``note`` describes how it was run."""

    name: str
    note: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)


def starts(kernel: Path, with_qemu: bool) -> list[Start]:
    """The starts to measure: pykvm's, and with ``with_qemu`` that of each machine of QEMU.

    UsageError if QEMU is not installed, HostError if it cannot run here.
    """
    found = [Start("pykvm", f"hot path {form()}", boot_command(kernel, MODE))]
    if with_qemu:
        program = qemu_program()
        for machine in MACHINES:
            model = cpu_model(program, machine, kernel)
            command = qemu_command(
                program=program, machine=machine, kernel=kernel, words=MODE, cpu=model
            )
            found.append(Start(f"qemu {machine}", qemu_note(model), command))
    return found


def time_starts(found: Sequence[Start], runs: int, report: Callable[[str], None]) -> None:
    """Start each tool in turn, ``runs`` times over, after one round that only warms the caches."""
    for number in range(runs + 1):
        for start in found:
            report(f"run {number} of {runs}, {start.name}" if number else f"warm-up, {start.name}")
            seconds = _first_words(start.command)
            if number:
                start.seconds.append(seconds)


def _first_words(command: Sequence[str]) -> float:
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        with running(command, errors) as child, selectors.DefaultSelector() as selector:
            assert child.stdout is not None
            selector.register(child.stdout, selectors.EVENT_READ)
            said = b""
            while WORDS not in said:
                data = b""
                if selector.select(PATIENCE_SECONDS):
                    data = os.read(child.stdout.fileno(), 4096)
                if not data:
                    raise PykvmError(
                        f"{Path(command[0]).name} did not start the guest{last_words(errors)}",
                        f"the command was '{join(command)}'",
                    )
                said += data
            return time.monotonic() - began


def start_table(found: Sequence[Start]) -> str:
    """A table of the medians, the least and the most, in milliseconds."""
    lines = []
    for start in found:
        middle, least, most = median(start.seconds), min(start.seconds), max(start.seconds)
        lines.append([start.name, *(f"{1e3 * value:.0f}" for value in (middle, least, most))])
    table = align(["to the guest's first words", "ms", "least", "most"], lines)
    return "\n".join([table, "", *(f"{start.name}: {start.note}" for start in found)])


def start_object(found: Sequence[Start]) -> list[dict[str, object]]:
    """The starts for JSON; docs/reference/bench.md describes the keys."""
    return [
        {
            "name": start.name,
            "note": start.note,
            "command": start.command,
            "median": median(start.seconds),
            "seconds": start.seconds,
        }
        for start in found
    ]
