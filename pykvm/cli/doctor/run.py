"""``pykvm doctor``: shows whether this host can run guests, and which abilities it has or lacks."""

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
    """Run ``pykvm doctor``. The exit status is 0 if this host can run guests, else 77."""
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
        description="Show whether this host can run guests, and how well.",
        epilog="Exit status: 0 if guests can run on this host, 77 if not.",
        allow_abbrev=False,
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument(
        "--flavour",
        action="store_true",
        help="print only the flavour of the bundled guest for this host: native, emulated, "
        "or unknown if KVM cannot be asked",
    )
    parser.add_argument(
        "--device",
        default="/dev/kvm",
        metavar="PATH",
        type=path_text,
        help="examine this KVM device (default: /dev/kvm)",
    )
    return parser


def _flavour(device: str) -> str:
    report = Report()
    # A host that cannot run guests may still build them for other hosts.
    with suppress(PykvmError), Kvm.open(device) as kvm:
        report.traits = probe(kvm)
    return report.flavour or "unknown"
