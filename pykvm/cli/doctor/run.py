"""``pykvm doctor``: shows what this host offers, what it lacks, and whether guests can run."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress

from pykvm.cli.doctor.examine import examine
from pykvm.cli.doctor.report import Report, as_object, as_text
from pykvm.cli.parser import Parser
from pykvm.cli.paths import path_text
from pykvm.cli.say import STDOUT, emit
from pykvm.errors import HostError, PykvmError
from pykvm.kvm.probe import probe
from pykvm.kvm.system import Kvm
from pykvm.names import json_text


def run_doctor(argv: Sequence[str]) -> int:
    """``pykvm doctor`` with ``argv``: 0 if this host can run guests, 77 if not."""
    options = _parser().parse_args(argv)
    if options.flavour:
        emit(_flavour(options.device) + "\n")
        return 0
    report = examine(options.device)
    if options.json:
        emit(json_text(as_object(report), indent=1) + "\n")
    else:
        colour = os.isatty(STDOUT) and "NO_COLOR" not in os.environ
        emit(as_text(report, colour) + "\n")
    return 0 if report.usable else HostError.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pykvm doctor",
        description="Show what this host offers for guests.",
        epilog="Exit status: 0 if guests can run here, 77 if not.",
        allow_abbrev=False,
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument(
        "--flavour",
        action="store_true",
        help="print only which build of the bundled guest suits this host: native, emulated, "
        "or unknown if KVM cannot be asked",
    )
    parser.add_argument(
        "--device",
        default="/dev/kvm",
        metavar="PATH",
        type=path_text,
        help="the KVM device (default: /dev/kvm)",
    )
    return parser


def _flavour(device: str) -> str:
    report = Report()
    # A host that cannot run guests may still build them for others.
    with suppress(PykvmError), Kvm.open(device) as kvm:
        report.traits = probe(kvm)
    return report.flavour or "unknown"
