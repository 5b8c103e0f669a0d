"""The guest's programs, each linked statically with musl and stripped.

Small matters more than fast here: where the host emulates kernel code, every page that a program
touches for the first time costs it thousands of emulated instructions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import kconfig, shell_edits
from .problem import BuildError
from .progress import run, step

_GUEST = Path(__file__).parent.parent
_SMALL = "-Os -ffunction-sections -fdata-sections"
_COLLECT = "-Wl,--gc-sections"
_MULTIARCH = Path("/usr/include/x86_64-linux-gnu")


@dataclass(frozen=True)
class Place:
    """Where and how a tool is built: unpacked sources by package, compiler, log, parallelism."""

    sources: dict[str, Path]
    work: Path
    compiler: Path
    log: Path
    jobs: int

    def make(self, folder: Path, *arguments: str) -> None:
        """Runs make in `folder`."""
        run(["make", f"-j{self.jobs}", *arguments], self.log, folder=folder)


@dataclass(frozen=True)
class Tool:
    """A part of the ramdisk: the programs it yields and the source packages it is built from."""

    name: str
    programs: tuple[str, ...]
    packages: tuple[str, ...]
    build: Callable[[Place], dict[str, Path]]
    recipe: tuple[Path, ...] = ()


def compiler(folder: Path) -> Path:
    """Makes a compiler command in `folder`: musl's, which by itself sees no kernel headers."""
    headers = folder / "headers"
    headers.mkdir(parents=True)
    for name in ("linux", "asm-generic", "mtd"):
        (headers / name).symlink_to(f"/usr/include/{name}")
    asm = _MULTIARCH / "asm"
    (headers / "asm").symlink_to(asm if asm.exists() else "/usr/include/asm")
    command = folder / "cc"
    command.write_text(f'#!/bin/sh\nexec musl-gcc "$@" -isystem {headers}\n')
    command.chmod(0o755)
    return command


def build(tool: Tool, place: Place, output: Path) -> None:
    """Builds a tool and leaves its stripped programs in `output`."""
    with step(f"Compiling {tool.name}"):
        for name, program in tool.build(place).items():
            strip = ["strip", "-s", "-R", ".comment", "-o", str(output / name), str(program)]
            run(strip, place.log)


def _init(place: Place) -> dict[str, Path]:
    program = place.work / "init"
    sources = sorted(str(file) for file in (_GUEST / "init").glob("*.c"))
    flags = ["-static", "-no-pie", "-fno-pie", *_SMALL.split(), "-Wall", "-Wextra", "-Werror"]
    # Fewer segments are fewer mappings to make and fewer pages to touch.
    link = [_COLLECT, "-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,--build-id=none"]
    run([str(place.compiler), *flags, *link, *sources, "-o", str(program)], place.log)
    return {"init": program}


def _busybox(place: Place) -> dict[str, Path]:
    wanted = kconfig.parse((_GUEST / "busybox.config").read_text())
    output = place.work / "busybox"
    output.mkdir()
    common = [
        f"O={output}", f"CC={place.compiler}", "EXTRA_CFLAGS=-ffunction-sections -fdata-sections",
        "KCONFIG_NOTIMESTAMP=1", "SOURCE_DATE_EPOCH=0",
    ]  # fmt: skip
    source = place.sources["busybox"]
    try:
        shell_edits.apply(source)
    except ValueError as error:
        raise BuildError(str(error)) from error
    place.make(source, *common, "allnoconfig")
    config = output / ".config"
    options = kconfig.parse(config.read_text())
    options.update(wanted)
    config.write_text(kconfig.render(options))
    run(
        ["sh", "-c", 'yes "" | make "$@" oldconfig', "sh", *common], place.log, folder=source
    )  # what a line enables may bring questions of its own: their defaults
    wrong = kconfig.refused(wanted, config.read_text())
    if wrong:
        raise BuildError(f"busybox did not take lines of busybox.config: {'; '.join(wrong)}")
    place.make(source, *common)
    return {"busybox": output / "busybox"}


def _e2fsprogs(place: Place) -> dict[str, Path]:
    output = place.work / "e2fsprogs"
    output.mkdir()
    configure = [
        str(place.sources["e2fsprogs"] / "configure"), f"CC={place.compiler}", f"CFLAGS={_SMALL}",
        f"LDFLAGS=-static {_COLLECT}", "--disable-nls", "--disable-elf-shlibs",
        "--disable-fuse2fs", "--disable-uuidd", "--disable-debugfs", "--disable-imager",
        "--disable-resizer", "--disable-defrag", "--disable-tdb", "--disable-backtrace",
        "--disable-rpath",
    ]  # fmt: skip
    run(configure, place.log, folder=output)
    place.make(output, "libs")
    place.make(output, "-C", "misc", "mke2fs")
    place.make(output, "-C", "e2fsck", "e2fsck")
    return {"mke2fs": output / "misc/mke2fs", "e2fsck": output / "e2fsck/e2fsck"}


def _fio(place: Place) -> dict[str, Path]:
    source, aio = place.sources["fio"], place.sources["libaio"] / "src"
    place.make(aio, f"CC={place.compiler}", "libaio.a")
    off = ["native", "numa", "rdma", "rados", "rbd", "http", "gfapi", "libnfs", "pmem", "xnvme"]
    off += ["libzbc", "tcmalloc", "dfs", "shm", "lex"]
    configure = [
        "./configure", f"--cc={place.compiler}", "--build-static",
        *(f"--disable-{feature}" for feature in off),
        f"--extra-cflags={_SMALL} -I{aio} -L{aio}",
    ]  # fmt: skip
    run(configure, place.log, folder=source)
    place.make(source, f"LDFLAGS=-static {_COLLECT} -L{aio}", "fio")
    return {"fio": source / "fio"}


def _util_linux(place: Place) -> dict[str, Path]:
    source = place.sources["util-linux"]
    without = ["python", "systemd", "udev", "ncurses", "ncursesw", "tinfo", "readline", "cap-ng"]
    without += ["selinux", "cryptsetup", "econf"]
    configure = [
        "./configure", f"CC={place.compiler}", f"CFLAGS={_SMALL}", f"LDFLAGS=-static {_COLLECT}",
        "--disable-shared", "--enable-static", "--disable-nls", "--disable-asciidoc",
        *(f"--without-{library}" for library in without),
    ]  # fmt: skip
    run(configure, place.log, folder=source)
    programs = ("fallocate", "fstrim", "blkdiscard")
    # Debian's patches make the generated files look old; regenerating needs what nobody has.
    generators = (f"{name}=:" for name in ("ACLOCAL", "AUTOCONF", "AUTOMAKE", "AUTOHEADER"))
    place.make(source, *generators, f"LDFLAGS=-all-static {_COLLECT}", *programs)
    return {name: source / name for name in programs}


_BUSYBOX_RECIPE = (_GUEST / "busybox.config", Path(shell_edits.__file__))

TOOLS = (
    Tool("init", ("init",), (), _init, tuple(sorted((_GUEST / "init").glob("*.[ch]")))),
    Tool("busybox", ("busybox",), ("busybox",), _busybox, _BUSYBOX_RECIPE),
    Tool("e2fsprogs", ("mke2fs", "e2fsck"), ("e2fsprogs",), _e2fsprogs),
    Tool("fio", ("fio",), ("fio", "libaio"), _fio),
    Tool("util-linux", ("fallocate", "fstrim", "blkdiscard"), ("util-linux",), _util_linux),
)


def recipe(tool: Tool) -> list[Path]:
    """Every file of ours that a tool depends on."""
    return [*tool.recipe, Path(__file__), Path(kconfig.__file__)]


def unpack(package: str, description: Path, folder: Path, log: Path) -> Path:
    """Unpacks a source package, with Debian's patches applied; returns the tree."""
    tree = folder / package
    folder.mkdir(exist_ok=True)
    # apt has checked the signature of what it downloaded.
    run(["dpkg-source", "--no-check", "-x", str(description), str(tree)], log)
    return tree
