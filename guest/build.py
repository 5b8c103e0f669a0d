#!/usr/bin/env python3
"""Builds the bundled guest, or collects its sources. Standard library only: it runs before any
virtual environment exists.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe import cache, kernel, sources
from recipe.builder import Builder, Options
from recipe.problem import BuildError

_CHECKOUT = Path(__file__).resolve().parent.parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="guest/build.py",
        description="Builds the bundled guest (kernel and initial ramdisk) from Debian's sources.",
    )
    parser.add_argument(
        "--flavour",
        choices=[*kernel.FLAVOURS, "all", "auto"],
        default="auto",
        help="which kernel: for ordinary KVM hosts (native), for hosts that emulate kernel code "
        "(emulated), both (all), or the one this host needs (auto, the default): "
        "both if that is not known, for want of /dev/kvm",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=_CHECKOUT / "pykvm" / "bundles" / "guest",
        metavar="DIR",
        help="where the bundle goes (default: %(default)s)",
    )
    parser.add_argument(
        "--sources",
        type=Path,
        metavar="DIR",
        help="collect the corresponding sources in DIR, after building",
    )
    parser.add_argument(
        "--install-deps", action="store_true", help="install missing build tools (as root)"
    )
    parser.add_argument(
        "--update", action="store_true", help="follow the package archive's newest versions"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="parallel compilers"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list cached parts and parts to build"
    )
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    return arguments


def _flavours(choice: str) -> list[str]:
    if choice == "all":
        return list(kernel.FLAVOURS)
    return _host_flavours() if choice == "auto" else [choice]


def _host_flavours() -> list[str]:
    """The flavour that the doctor names for this host; all if it does not know, or cannot run."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "pykvm", "doctor", "--flavour"],
            capture_output=True,
            text=True,
            cwd=_CHECKOUT,
            timeout=60,
            check=False,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    return [answer] if answer in kernel.FLAVOURS else list(kernel.FLAVOURS)


def main() -> int:
    """The command; returns its exit status."""
    arguments = _arguments()
    options = Options(
        flavours=_flavours(arguments.flavour),
        output=arguments.output,
        install=arguments.install_deps,
        update=arguments.update,
        dry_run=arguments.dry_run,
        jobs=arguments.jobs,
    )
    try:
        builder = Builder(cache.Cache(cache.folder()), options)
        builder.build()
        if arguments.sources and not arguments.dry_run:
            sources.collect(builder, arguments.sources)
    except BuildError as error:
        print(f"guest/build.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"guest/build.py: {error.strerror}{where}; the log is {cache.folder() / 'build.log'}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nguest/build.py: interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
