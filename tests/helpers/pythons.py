"""Runs the unit tests on every other supported Python of this machine: make test-pythons.

Those are found on the PATH and among pyenv's; one of each minor version is enough.
Each has an environment of its own in build/pythons, which is kept. The hot path is
interpreted: that it compiles is tested with the Python of the checkout.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from checkout import ROOT
from patience import patience

OLDEST = (3, 11)
LOOK = "import ensurepip, venv, sys; print(*sys.version_info[:2])"


def candidates() -> Iterator[Path]:
    """The programs that may be a Python."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for folder in [*folders, *sorted(pyenv.glob("versions/*/bin"))]:
        for path in sorted(folder.glob("python3.*")):
            if re.fullmatch(r"python3\.\d+", path.name):
                yield path


def version_of(program: Path) -> tuple[int, ...]:
    """The version of ``program``; () if it does not run, or cannot make an environment."""
    try:
        done = subprocess.run(
            [program, "-c", LOOK], capture_output=True, check=False, timeout=patience()
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()


def others(programs: Iterable[Path]) -> dict[tuple[int, ...], Path]:
    """One program for each other version that is not too old."""
    found: dict[tuple[int, ...], Path] = {}
    for program in programs:
        version = version_of(program)
        if version >= OLDEST and version != sys.version_info[:2]:
            found.setdefault(version, program)
    return dict(sorted(found.items()))


def environment(version: tuple[int, ...], program: Path) -> Path:
    """The Python of an environment with the packages that the tests need."""
    folder = ROOT / "build/pythons" / ".".join(map(str, version))
    python, stamp = folder / "bin/python", folder / "installed"
    wanted = (ROOT / "pyproject.toml").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([program, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--editable", f"{ROOT}[test]"], check=True)
        stamp.write_text(wanted)
    return python


def main(arguments: list[str]) -> int:
    """Run pytest with ``arguments`` on each; 1 if one of them fails."""
    found = others(candidates())
    if not found:
        print("no other Python here than the one that the tests ran on")
    failed = []
    for version, program in found.items():
        name = "Python " + ".".join(map(str, version))
        print(f"{name}, {program}:", flush=True)
        python = environment(version, program)
        # The wheel is of the checkout's Python: it is built compiled.
        command = [python, "-m", "pytest", "-q", "--ignore=tests/unit/project/test_packaging.py"]
        given = os.environ | {"PYKVM_FORM": "interpreted"}
        if subprocess.run([*command, *arguments], cwd=ROOT, env=given, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"tests fail on {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["tests/unit"]))
