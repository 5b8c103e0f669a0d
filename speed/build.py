#!/usr/bin/env python3
"""Compile the hot modules with Cython, next to their sources: ``make speed``.

Each module is copied into a folder of its own together with the declarations
that its annotations amount to (declarations.py), and becomes an extension
module there. Python prefers an extension module to the .py file beside it.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOT = (
    "pykvm.virtio.chain",
    "pykvm.virtio.split",
    "pykvm.devices.virtio_blk.request",
    "pykvm.devices.virtio_blk.operation",
    "pykvm.devices.virtio_blk.merge",
    "pykvm.devices.virtio_blk.plan",
    "pykvm.devices.virtio_blk.order",
    "pykvm.devices.virtio_blk.schedule",
    "pykvm.devices.virtio_blk.stats",
    "pykvm.devices.virtio_blk.transfer",
    "pykvm.devices.virtio_blk.engine",
    "pykvm.devices.virtio_blk.service",
)
"""What a request passes on its way, whatever it asks for."""

# Python's own rules, at little cost: an index is checked, an overflow and an attribute of
# None raise, instead of touching what they should not.
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,
    "infer_types": True,
    "boundscheck": True,
    "overflowcheck": True,
    "nonecheck": True,
}


def source_of(name: str) -> Path:
    """The source of module ``name``."""
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def extensions_of(name: str, root: Path) -> list[Path]:
    """The extension modules of module ``name`` below ``root``, for whatever Python."""
    *packages, last = name.split(".")
    return list(root.joinpath(*packages).glob(f"{last}.*.so"))


def compiled_files() -> list[Path]:
    """The extension modules that lie next to sources."""
    return [found for name in HOT for found in extensions_of(name, ROOT)]


def fingerprint() -> str:
    """A hash of all that a build depends on."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (*map(source_of, HOT), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(folder: Path) -> list[Path]:
    """Compile all hot modules in ``folder``; the extension modules, next to the sources.

    RuntimeError, with what the compiler said, if one cannot be compiled.
    """
    from declarations import Module

    shutil.rmtree(folder, ignore_errors=True)
    modules = {name: Module(name, source_of(name)) for name in HOT}
    for name in HOT:
        copy = folder.joinpath(*name.split(".")).with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source_of(name), copy)
        copy.with_suffix(".pxd").write_text(modules[name].declarations(modules))
        for package in copy.relative_to(folder).parents:
            (folder / package / "__init__.py").touch()
    (folder / "__init__.py").unlink()
    command = [sys.executable, str(Path(__file__).resolve()), "--in-folder"]
    environment = {"CFLAGS": "-O2", **os.environ}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-4000:])
    built = []
    for name in HOT:
        (made,) = extensions_of(name, folder)
        beside = source_of(name).parent / made.name
        beside.unlink(missing_ok=True)  # a process may have it mapped
        shutil.copyfile(made, beside)
        built.append(beside)
    return built


def build_here() -> None:
    """Run Cython and the C compiler in the working folder."""
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    extensions = [Extension(name, [name.replace(".", "/") + ".py"]) for name in HOT]
    setup(
        name="pykvm-speed",
        packages=[],
        script_args=["-q", "build_ext", "--inplace", f"-j{os.cpu_count() or 1}"],
        ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, quiet=True),
    )


def clean() -> None:
    """Remove the extension modules: interpreted from now on."""
    for path in compiled_files():
        path.unlink()


def main(arguments: Sequence[str]) -> int:
    """``build.py [--if-possible] | --clean``."""
    parser = argparse.ArgumentParser(description="compile pykvm's hot modules")
    parser.add_argument("--clean", action="store_true", help="remove what was compiled")
    parser.add_argument(
        "--if-possible", action="store_true", help="do without if there is no compiler"
    )
    parser.add_argument("--in-folder", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_folder:
        build_here()
        return 0
    if options.clean:
        clean()
        return 0
    stamp = ROOT / "build" / "speed.stamp"
    wanted = fingerprint()
    current = stamp.exists() and stamp.read_text() == wanted
    if current and len(compiled_files()) == len(HOT):
        return 0
    print("compiling the hot modules (some 30 seconds) …", file=sys.stderr)
    try:
        clean()
        build(ROOT / "build" / "speed")
    except RuntimeError as error:
        needed = "a C compiler and Python's headers (python3-dev) are needed to compile"
        if options.if_possible:
            print(f"interpreted: {needed}", file=sys.stderr)
            return 0
        print(f"{error}\n{needed}", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
