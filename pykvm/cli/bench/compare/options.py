"""The options of ``pykvm bench compare``, and the configurations that they describe."""

import argparse
from collections.abc import Sequence
from itertools import product

from pykvm.bench.compare.stream import STREAMS
from pykvm.cli.bench.linux_guest import add_guest_options
from pykvm.cli.disk_keys import parse_disk
from pykvm.cli.parser import Parser
from pykvm.cli.paths import parse_path
from pykvm.errors import UsageError

BARE = "bare"
MOST = 16
"""The most configurations."""
POLICIES = "merge=off,sorted-batch,sequential,sorted"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        prog="pykvm bench compare",
        description="Run the same load under several configurations of a disk, in turns, and "
        "compare their times, operations and merges.",
        epilog=f"Without --vary, it compares {POLICIES}. Without --disk, the disk is a temporary "
        "file. docs/reference/bench-compare.md explains each option.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        *("--vary",),
        metavar="KEY=VALUE,VALUE,...",
        action="append",
        default=[],
        help="values of a key of --disk to compare; several --vary are combined",
    )
    add(
        "--load",
        metavar="LOAD",
        default="install",
        help=f"{', '.join(STREAMS)}, or a job file of fio (default: install)",
    )
    add(
        *("--set",),
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="set this option of fio in each job of the load, such as filename=/dev/vda; may be "
        "repeated",
    )
    add(
        "--disk",
        metavar="PATH[,KEY=VALUE...]",
        default="",
        help="the disk, as in 'pykvm boot', or a folder for a temporary file",
    )
    add("--disk-size", metavar="SIZE", help="size of the temporary file (default: 256M)")
    add_guest_options(made)
    made.set_defaults(guest=None)
    add("--repeat", metavar="N", default="5", help="rounds (default: 5)")
    add("--json", metavar="FILE", type=parse_path, help="write all samples as JSON")
    add("--chart", metavar="FILE", type=parse_path, help="draw the results as SVG")
    return made


def variants(texts: Sequence[str]) -> list[str]:
    """The keys of each configuration, such as ``merge=off,engine=sync``, from ``--vary``.

    UsageError for a key or a value that no disk has, and for too many.
    """
    axes: list[list[str]] = []
    for text in texts or [POLICIES]:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UsageError(f"--vary cannot be '{text}'", f"write it like --vary {POLICIES}")
        if any(axis[0].partition("=")[0] == key for axis in axes):
            raise UsageError(f"--vary has '{key}' twice", "give all its values once")
        axes.append([f"{key}={value}" for value in values.split(",")])
    found = [",".join(keys) for keys in product(*axes)]
    for keys in found:
        parse_disk(f"disk,{keys}")
        if found.count(keys) > 1:
            raise UsageError(f"--vary has '{keys}' twice", "give each value once")
    if len(found) > MOST:
        raise UsageError(
            f"--vary makes {len(found)} configurations", f"compare at most {MOST} at once"
        )
    return found
