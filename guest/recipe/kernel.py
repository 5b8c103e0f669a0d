"""The guest's kernel: Debian's source, our fragments, an ELF file without symbols."""

import shutil
from pathlib import Path

from . import edits, kconfig
from .problem import BuildError
from .progress import run, step

FLAVOURS = ("emulated", "native")
SOURCE_PACKAGE = "linux-source-6.1"
_FILES = {"emulated": 700, "native": 760}
"""About so many files are compiled."""

_UNUSED = (
    *(f"*/{folder}/*.[ch]" for folder in ("drivers/gpu", "drivers/net", "sound")),
    *(f"*/Documentation/*.{kind}" for kind in ("rst", "txt", "yaml")),
)
"""Half of the source tree by size, which no configuration of ours looks at."""

_FRAGMENTS = Path(__file__).parent.parent / "kernel"


def fragments(flavour: str) -> list[Path]:
    """The files that a flavour's configuration consists of; the last one has the last word."""
    return [_FRAGMENTS / "kernel-common.config", _FRAGMENTS / f"kernel-{flavour}.config"]


def recipe(flavour: str) -> list[Path]:
    """Every file of ours that the kernel depends on."""
    return [*fragments(flavour), Path(edits.__file__), Path(kconfig.__file__), Path(__file__)]


def unpack(package: Path, folder: Path, log: Path) -> Path:
    """Unpacks the source out of Debian's binary package and edits it; returns the tree."""
    with step("Unpacking the kernel's source"):
        run(["dpkg-deb", "-x", str(package), str(folder)], log)
        archive = next((folder / "usr/src").glob("linux-source-*.tar.xz"))
        unused = [f"--exclude={pattern}" for pattern in _UNUSED]
        run(["tar", "-xf", str(archive), *unused], log, folder=folder)
        archive.unlink()
        tree = next(folder.glob("linux-source-*"))
        try:
            edits.apply(tree)
        except ValueError as error:
            raise BuildError(str(error)) from error
    return tree


def build(tree: Path, flavour: str, work: Path, jobs: int, log: Path, output: Path) -> None:
    """Configures and compiles in `work`, and leaves `vmlinux` and `config` in `output`.

    Raises BuildError, naming the options, when Kconfig did not take a fragment's line.
    """
    options = kconfig.merge([file.read_text() for file in fragments(flavour)])
    work.mkdir()
    wanted = work / "wanted.config"
    wanted.write_text(kconfig.render(options))
    make = [
        "make", "-C", str(tree), f"O={work}", "ARCH=x86_64", f"-j{jobs}",
        # What the kernel says about who built it and when must not depend on that.
        "KBUILD_BUILD_USER=pykvm", "KBUILD_BUILD_HOST=pykvm", "KBUILD_BUILD_VERSION=1",
        "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
    ]  # fmt: skip
    with step(f"Configuring the kernel ({flavour})"):
        run([*make, "allnoconfig", f"KCONFIG_ALLCONFIG={wanted}"], log)
        wrong = kconfig.refused(options, (work / ".config").read_text())
        if wrong:
            raise BuildError(
                f"the kernel's configuration did not take the recipe's lines: {'; '.join(wrong)}. "
                "A dependency is missing in guest/kernel, or the option has another name now"
            )
    with step(f"Compiling the kernel ({flavour})", log=log, files=_FILES[flavour]):
        run([*make, "vmlinux"], log)
    run(
        ["strip", "-s", "-R", ".comment", "-o", str(output / "vmlinux"), str(work / "vmlinux")], log
    )
    shutil.copyfile(work / ".config", output / "config")
