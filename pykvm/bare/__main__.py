"""``python -m pykvm.bare build [FILE]``: builds the bare guest and prints its path."""

import argparse
import sys
from pathlib import Path

from pykvm.bare.build import build_bare_guest
from pykvm.errors import PykvmError


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pykvm.bare")
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="build the bare guest and print its path")
    build.add_argument(
        "output", nargs="?", metavar="FILE", type=Path, help="also copy it to FILE, and print that"
    )
    options = parser.parse_args()
    try:
        print(build_bare_guest(options.output))
    except PykvmError as error:
        print(f"pykvm: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
