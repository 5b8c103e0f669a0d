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
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from declarations import Module

ROOT = Path(__file__).resolve().parent.parent
HOT = (
    "pykvm.watch",
    "pykvm.io_uring",
    "pykvm.virtio.chain",
    "pykvm.virtio.queue",
    "pykvm.virtio.split",
    "pykvm.virtio.packed",
    "pykvm.devices.virtio_blk.request",
    "pykvm.devices.virtio_blk.operation",
    "pykvm.devices.virtio_blk.merge",
    "pykvm.devices.virtio_blk.plan",
    "pykvm.devices.virtio_blk.order",
    "pykvm.devices.virtio_blk.schedule",
    "pykvm.devices.virtio_blk.histogram",
    "pykvm.devices.virtio_blk.stats",
    "pykvm.devices.virtio_blk.transfer",
    "pykvm.devices.virtio_blk.engine",
    "pykvm.devices.virtio_blk.io_uring",
    "pykvm.devices.virtio_blk.service",
    "pykvm.devices.virtio_blk.rounds",
)
"""What a request passes on its way, whatever it asks for; bases before what is made of them."""

STAND_IN = "from pykvm import interpreted as cython"
"""The line by which a module imports what stands in for Cython when it is interpreted."""

DEBIAN_PACKAGES = ("gcc", "libc6-dev", "python3-dev")

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


def compile_in(folder: Path) -> None:
    """Fill ``folder`` with the sources, their declarations and the extension modules.

    RuntimeError, with what the compiler said, if one cannot be compiled.
    """
    modules: dict[str, Module] = {}
    for name in HOT:
        modules[name] = Module(name, ROOT, modules.values())
    for name in HOT:
        copy = folder.joinpath(*name.split(".")).with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source_of(name).read_text().replace(STAND_IN, "import cython"))
        copy.with_suffix(".pxd").write_text(modules[name].declarations(modules))
        for package in list(copy.relative_to(folder).parents)[:-1]:
            (folder / package / "__init__.py").touch()
    # In a process of its own, for setuptools and Cython work in the current folder.
    command = [sys.executable, str(Path(__file__).resolve()), "--in-folder"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-4000:])


def compile_here() -> None:
    """Run Cython and the C compiler in the working folder."""
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    extensions = [
        Extension(
            name,
            [name.replace(".", "/") + ".py"],
            extra_compile_args=["-O2", "-g0"],
        )
        for name in HOT
    ]
    setup(
        name="pykvm-speed",
        packages=[],
        script_args=["-q", "build_ext", "--inplace", f"-j{os.cpu_count() or 1}"],
        ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, quiet=True),
    )


def missing_tools() -> bool:
    """Is there no C compiler, or no header of this Python?"""
    header = Path(sysconfig.get_path("include"), "Python.h")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return not (shutil.which(compiler) and header.exists())


def install_tools() -> None:
    """Have Debian's package manager install them; RuntimeError."""
    command = ["apt-get", "install", "-qy", "--no-install-recommends", *DEBIAN_PACKAGES]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"{' '.join(command)} failed")


def build() -> list[Path]:
    """Compile what changed; the extension modules, which are next to their sources then."""
    folder = ROOT / "build" / "speed"
    stamp = folder / "fingerprint"
    wanted = fingerprint()
    if not stamp.exists() or stamp.read_text() != wanted:
        print("compiling the hot path, less than a minute …", file=sys.stderr)
        clean()
        shutil.rmtree(folder, ignore_errors=True)
        compile_in(folder)
        stamp.write_text(wanted)
    built = []
    for name in HOT:
        (made,) = extensions_of(name, folder)
        beside = source_of(name).parent / made.name
        built.append(beside)
        if not beside.exists() or beside.stat().st_mtime_ns != made.stat().st_mtime_ns:
            beside.unlink(missing_ok=True)  # a process may have it mapped
            shutil.copy2(made, beside)
    return built


def clean() -> None:
    """Remove the extension modules: interpreted from now on."""
    for path in compiled_files():
        path.unlink()


def main(arguments: Sequence[str]) -> int:
    """Do as the command line says; the exit status."""
    parser = argparse.ArgumentParser(description="compile pykvm's hot path, or undo that")
    add = parser.add_argument
    add("--clean", action="store_true", help="interpreted from now on")
    add("--if-possible", action="store_true", help="do without if there is no compiler")
    add("--install-deps", action="store_true", help="install the compiler if missing (as root)")
    add("--in-folder", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_folder:
        compile_here()
        return 0
    if options.clean:
        clean()
        return 0
    try:
        if missing_tools():
            if options.if_possible:
                clean()
                return 0
            if not options.install_deps:
                packages = " ".join(DEBIAN_PACKAGES)
                raise RuntimeError(f"a C compiler and Python's headers are needed: {packages}")
            install_tools()
        build()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
