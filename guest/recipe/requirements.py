"""The programs and headers that building needs, and the Debian packages they come from."""

import os
import shlex
import shutil
from pathlib import Path

from .problem import BuildError
from .progress import run, step

# A program, or a file that must exist -> the package that has it.
_NEEDED = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "bzip2": "bzip2",
    "patch": "patch",
    "perl": "perl",
    "dpkg-source": "dpkg-dev",
    "musl-gcc": "musl-tools",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/libelf.h": "libelf-dev",
}


def missing() -> list[str]:
    """The Debian packages that have to be installed before anything can be built."""
    absent = {
        package
        for what, package in _NEEDED.items()
        if not (Path(what).exists() if what.startswith("/") else shutil.which(what))
    }
    return sorted(absent)


def ensure(install: bool, log: Path) -> None:
    """Sees to it that everything is there; installs it when asked to and allowed to.

    Raises BuildError naming the command that would install what is missing.
    """
    packages = missing()
    if not packages:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    by_hand = ("" if os.geteuid() == 0 else "sudo ") + shlex.join(command)
    if not install:
        raise BuildError(
            f"building the guest needs {', '.join(packages)}. Run: {by_hand}\n"
            "(or give --install-deps as root)"
        )
    if os.geteuid() != 0:
        raise BuildError(f"--install-deps needs root. Run: {by_hand}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"Installing {', '.join(packages)}"):
        run(["apt-get", "update", "-q"], log, environment=quiet, hint="Check the network")
        run(command, log, environment=quiet, hint=f"Try: {by_hand}")
