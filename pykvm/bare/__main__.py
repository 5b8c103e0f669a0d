"""``python -m pykvm.bare build [FILE]``: build the bare guest and print where it is."""

import argparse
import sys
from pathlib import Path

from pykvm.bare.build import build_bare_guest
from pykvm.errors import PykvmError


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pykvm.bare")
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="build the bare-metal test guest")
    build.add_argument("output", nargs="?", type=Path, help="copy it to this file as well")
    options = parser.parse_args()
    try:
        print(build_bare_guest(options.output))
    except PykvmError as error:
        print(f"pykvm: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
