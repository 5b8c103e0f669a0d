#!/usr/bin/env python3
"""Compile the hot modules with Cython, next to their sources: ``make speed``.

Each module is copied to build/speed together with its declarations, which
declarations.py makes from its annotations. It becomes an extension module there, which is
copied next to the source. Python prefers an extension module to the .py file beside it.
"""

import argparse
import ast
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from declarations import Module

ROOT = Path(__file__).resolve().parent.parent
HOT = (
    "pykvm.hot.word_watch",
    "pykvm.host.io_uring",
    "pykvm.virtio.chain",
    "pykvm.virtio.queue",
    "pykvm.virtio.split",
    "pykvm.virtio.packed",
    "pykvm.devices.virtio_blk.core.request",
    "pykvm.devices.virtio_blk.core.parser",
    "pykvm.devices.virtio_blk.core.operation",
    "pykvm.devices.virtio_blk.core.merge",
    "pykvm.devices.virtio_blk.core.planner",
    "pykvm.devices.virtio_blk.core.ordering",
    "pykvm.devices.virtio_blk.core.scheduler",
    "pykvm.devices.virtio_blk.observe.histogram",
    "pykvm.devices.virtio_blk.observe.stats",
    "pykvm.devices.virtio_blk.engines.transfer",
    "pykvm.devices.virtio_blk.engines.sync",
    "pykvm.devices.virtio_blk.engines.uring",
    "pykvm.devices.virtio_blk.serving.answers",
    "pykvm.devices.virtio_blk.serving.queue_service",
    "pykvm.devices.virtio_blk.serving.poll_loop",
    "pykvm.devices.virtio_blk.serving.poll_time",
    "pykvm.devices.virtio_blk.serving.contention",
    "pykvm.devices.virtio_blk.serving.event_loop",
)
"""The modules that every request passes. A base class comes before the classes made of it."""

STAND_IN = "from pykvm.hot import cython_stub as cython"
"""The line by which a module imports the stand-in for Cython of the interpreted form."""

C_CALLS = Path(__file__).with_name("c_calls.pxd")
"""The source of ``from cython.cimports.c_calls import …``."""

DEBIAN_PACKAGES = ("gcc", "libc6-dev", "python3-dev")

# Python's rules hold, at little cost: a bad index, an overflow and an attribute of None raise
# exceptions instead of corrupting memory.
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,
    "infer_types": True,
    "boundscheck": True,
    "overflowcheck": True,
    "nonecheck": True,
}
FLAGS = ["-O2", "-g0"]


def source_of(name: str) -> Path:
    """The source of module ``name``."""
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def extensions_of(name: str, root: Path) -> list[Path]:
    """The extension modules of module ``name`` below ``root``, for any Python."""
    *packages, last = name.split(".")
    return list(root.joinpath(*packages).glob(f"{last}.*.so"))


def compiled_files() -> list[Path]:
    """The extension modules next to sources, including those of renamed modules."""
    return [found for folder in ("pykvm", "devices") for found in (ROOT / folder).rglob("*.so")]


class Build:
    """The folder of sources, declarations and extension modules.

    Each extension module has a ``.key`` beside it: a hash of everything from which
    it was made. A module is compiled again only if its key changes.
    """

    def __init__(self, folder: Path) -> None:
        """Bring the sources and declarations in ``folder`` up to date."""
        self.folder = folder
        self._keys: dict[str, str] = {}
        modules: dict[str, Module] = {}
        for name in HOT:
            modules[name] = Module(name, ROOT, modules.values())
        sources = {
            name: source_of(name).read_text().replace(STAND_IN, "import cython") for name in HOT
        }
        declared = {name: module.declarations(modules) for name, module in modules.items()}
        c_calls = C_CALLS.read_text()
        write(folder / C_CALLS.name, c_calls)
        tools = [sys.version, version("cython"), repr(DIRECTIVES), repr(FLAGS), c_calls]
        for name in HOT:
            seen = [declared[other] for other in sorted(needed(name, modules))]
            parts = [*tools, sources[name], *seen]
            self._keys[name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
            write(self._file(name, ".py"), sources[name])
            write(self._file(name, ".pxd"), declared[name])
            for package in list(Path(*name.split(".")).parents)[:-1]:
                write(folder / package / "__init__.py", "")

    def _file(self, name: str, suffix: str) -> Path:
        return self.folder.joinpath(*name.split(".")).with_suffix(suffix)

    def stale(self) -> list[str]:
        """The modules that need compiling."""
        return [
            name
            for name in HOT
            if not (key := self._file(name, ".key")).exists()
            or key.read_text() != self._keys[name]
            or len(extensions_of(name, self.folder)) != 1
        ]

    def compile(self, name: str) -> None:
        """Compile module ``name``; RuntimeError, with the compiler's output, if that fails."""
        self._file(name, ".key").unlink(missing_ok=True)
        for old in extensions_of(name, self.folder):
            old.unlink()
        # In a separate process, because setuptools and Cython work in the current folder.
        command = [sys.executable, str(Path(__file__).resolve()), "--in-folder", name]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-4000:])
        self._file(name, ".key").write_text(self._keys[name])

    def compile_all(self, names: Sequence[str]) -> None:
        """Compile ``names``, one at a time per CPU, and show the progress."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            waiting = [pool.submit(self.compile, name) for name in names]
            try:
                for count, done in enumerate(as_completed(waiting), 1):
                    done.result()
                    show(f"compiled {count} of {len(names)} modules of the hot path")
            finally:
                pool.shutdown(cancel_futures=True)
                show("")


def needed(name: str, modules: dict[str, Module]) -> set[str]:
    """The hot modules whose declarations the compiler reads for module ``name``, including it."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            nodes = (node for node in modules[one].tree.body if isinstance(node, ast.ImportFrom))
            waiting += [node.module for node in nodes if node.module in modules]
    return found


def write(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, unless it has this text already."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def show(text: str) -> None:
    """Show the progress, on a terminal only; an empty text ends it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def compile_here(name: str) -> None:
    """Run Cython and the C compiler on module ``name`` in the working folder."""
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    source = name.replace(".", "/") + ".py"
    extension = Extension(name, [source], extra_compile_args=FLAGS)
    setup(
        name="pykvm-speed",
        packages=[],
        script_args=["-q", "build_ext", "--inplace", "--force"],
        ext_modules=cythonize([extension], compiler_directives=DIRECTIVES, quiet=True, force=True),
    )


def missing_tools() -> bool:
    """True if there is no C compiler, or no header of this Python."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return not (shutil.which(compiler) and header.exists())


def install_tools() -> None:
    """Install the compiler and the headers with Debian's package manager; RuntimeError."""
    command = ["apt-get", "install", "-qy", "--no-install-recommends", *DEBIAN_PACKAGES]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"{' '.join(command)} failed")


def build() -> list[Path]:
    """Compile changed modules; return all extension modules, which are next to their sources."""
    made = Build(ROOT / "build" / "speed")
    if stale := made.stale():
        print(
            f"compiling {len(stale)} of {len(HOT)} modules of the hot path,"
            " about ten seconds of processor time each …",
            file=sys.stderr,
        )
        made.compile_all(stale)
    built = []
    for name in HOT:
        (extension,) = extensions_of(name, made.folder)
        beside = source_of(name).parent / extension.name
        built.append(beside)
        if not beside.exists() or beside.stat().st_mtime_ns != extension.stat().st_mtime_ns:
            beside.unlink(missing_ok=True)  # not overwritten, because a process may have it mapped
            shutil.copy2(extension, beside)
    for old in set(compiled_files()) - set(map(Path.resolve, built)):
        old.unlink()
    return built


def clean() -> None:
    """Remove the extension modules, so that the hot path is interpreted."""
    for path in compiled_files():
        path.unlink()


def interpreted_for(command: Sequence[str]) -> int:
    """Run ``command`` with the hot path interpreted, then restore the form; its exit status."""
    if not compiled_files():
        return _status_of(command)
    print("the hot path is interpreted while this command runs", file=sys.stderr)
    clean()
    try:
        return _status_of(command)
    finally:
        build()


def _status_of(command: Sequence[str]) -> int:
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # The command got Ctrl-C too, and reports it.


def main(arguments: Sequence[str]) -> int:
    """Carry out the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="compile pykvm's hot path, or undo that")
    add = parser.add_argument
    add("--clean", action="store_true", help="remove the compiled form")
    add("--if-compiled", action="store_true", help="do nothing if the hot path is interpreted")
    add(
        "--interpreted",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="run COMMAND interpreted",
    )
    add("--install-deps", action="store_true", help="install a missing compiler (as root)")
    add("--in-folder", metavar="MODULE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_folder:
        compile_here(options.in_folder)
        return 0
    if options.clean:
        clean()
        return 0
    if options.if_compiled and not compiled_files():
        return 0
    try:
        if options.interpreted:
            return interpreted_for(options.interpreted)
        if missing_tools():
            if not options.install_deps:
                packages = " ".join(DEBIAN_PACKAGES)
                raise RuntimeError(f"no C compiler, or no Python.h: apt-get install {packages}")
            install_tools()
        build()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
