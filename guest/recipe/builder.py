"""Building the guest: resolve versions, build the parts that the cache lacks, put them together.

A part's key covers the recipe's files it depends on, and the names and hashes of the packages it
is built from. Which packages those are is asked of the archive once for each recipe, and kept: so
a second build needs no network, and a new one follows the archive only when `update` is asked for.
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import apt, bundle, cpio, initrd, kernel, requirements, tools
from .cache import Cache, key, write_atomically
from .problem import BuildError
from .progress import capture, note, step, together

_SOURCES = tuple(sorted({package for tool in tools.TOOLS for package in tool.packages}))


@dataclass(frozen=True)
class Options:
    """What is asked for: flavours, where to put the bundle, and how to go about it."""

    flavours: list[str]
    output: Path
    install: bool
    update: bool
    dry_run: bool
    jobs: int


class Builder:
    """Builds the guest with the parts of one cache."""

    def __init__(self, cache: Cache, options: Options) -> None:
        self._cache = cache
        self._options = options
        self._log = cache.root / "build.log"
        self._kernel_log = cache.root / "kernel.log"
        self._downloads = cache.root / "downloads"
        self._packages: dict[str, apt.Package] = {}
        self._archive = apt.Archive(cache.root / "apt", self._log)
        self._updated = False

    def build(self) -> None:
        """Leaves the bundle in the output folder. Raises BuildError when that is not possible."""
        parts = self._keys()
        if self._options.dry_run:
            self._announce(parts)
            return
        if parts is None or not all(self._cache.path(*part).is_dir() for part in parts.items()):
            with self._cache.lock():
                self._log.write_bytes(b"")
                requirements.ensure(self._options.install, self._log)
                parts = self._build_parts()
        self._assemble(parts)

    def packages(self) -> dict[str, apt.Package]:
        """The packages that the binaries are made of, musl's included, as they were built."""
        if not self._load():
            raise BuildError("the guest has not been built yet; build it first")
        return self._packages

    def fetch(self, name: str, folder: Path) -> None:
        """Puts a package's files into `folder`, from the downloads or else from the archive."""
        folder.mkdir(parents=True, exist_ok=True)
        with self._cache.lock():
            package = self._fetched(name)
            for file, _ in package.files:
                shutil.copyfile(self._downloads / file, folder / file)

    def _announce(self, parts: dict[str, str] | None) -> None:
        if parts is None:
            note("Package versions: to be asked of the archive (needs the network)")
        for name, part_key in (parts or {}).items():
            held = self._cache.path(name, part_key).is_dir()
            note(f"{name}: {'in the cache' if held else 'to be built'} ({part_key})")
        note(f"Output: {self._options.output}")

    # Which packages, and which keys follow from them.

    def _index(self) -> Path:
        return self._cache.root / f"packages-{recipe_hash()}.json"

    def _load(self) -> bool:
        try:
            entries = json.loads(self._index().read_bytes())
            self._packages = {
                name: apt.Package(
                    name, entry["version"], tuple((f, h) for f, h in entry["files"]),
                    entry["request"],
                )
                for name, entry in entries.items()
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def _keys(self) -> dict[str, str] | None:
        """The key of each part that is asked for; None while versions are unknown."""
        if self._options.update or not self._load():
            return None
        return self._part_keys()

    def _part_keys(self) -> dict[str, str]:
        keys = {}
        for flavour in self._options.flavours:
            keys[f"kernel-{flavour}"] = self._key(kernel.recipe(flavour), kernel.SOURCE_PACKAGE)
        for tool in tools.TOOLS:
            keys[tool.name] = self._key(tools.recipe(tool), "musl", *tool.packages)
        return keys

    def _key(self, files: list[Path], *packages: str) -> str:
        contents = [(file.name, file.read_text()) for file in files]
        return key(contents, [(p, self._packages[p].files) for p in packages])

    def _update(self) -> None:
        if not self._updated:
            with step("Asking the package archive"):
                self._archive.update()
            self._updated = True

    def _resolve(self) -> None:
        self._update()
        found = {kernel.SOURCE_PACKAGE: self._archive.binary(kernel.SOURCE_PACKAGE)}
        for name in _SOURCES:
            found[name] = self._archive.source(name)
        # musl is linked in as installed, so its source is that of the installed version.
        installed = capture(["dpkg-query", "-W", "-f", "${source:Version}", "musl-dev"])
        found["musl"] = self._archive.source("musl", installed)
        self._packages = found
        entries = {
            name: {"version": p.version, "files": p.files, "request": p.request}
            for name, p in found.items()
        }
        write_atomically(self._index(), json.dumps(entries, indent=2).encode())

    # Building.

    def _build_parts(self) -> dict[str, str]:
        if self._options.update or not self._load():
            self._resolve()
        parts = self._part_keys()
        missing = {name for name, key in parts.items() if not self._cache.path(name, key).is_dir()}
        wanted = [tool for tool in tools.TOOLS if tool.name in missing]
        flavours = [name for name in self._options.flavours if f"kernel-{name}" in missing]
        for name in [package for tool in wanted for package in tool.packages]:
            self._fetched(name)
        if flavours:
            self._fetched(kernel.SOURCE_PACKAGE)
        with self._cache.scratch("work") as work:
            # Configuring the tools leaves most CPUs idle.
            together(
                partial(self._build_tools, wanted, parts, work),
                partial(self._build_kernels, flavours, parts, work),
            )
        return parts

    def _build_tools(self, wanted: list[tools.Tool], parts: dict[str, str], work: Path) -> None:
        compiler = tools.compiler(work / "compiler")
        for tool in wanted:
            trees = {name: self._unpacked(name, work) for name in tool.packages}
            place = tools.Place(trees, work, compiler, self._log, self._options.jobs)
            self._cache.build(
                tool.name,
                parts[tool.name],
                partial(tools.build, tool, place),
            )

    def _unpacked(self, name: str, work: Path) -> Path:
        package = self._fetched(name)
        description = next(f for f, _ in package.files if f.endswith(".dsc"))
        return tools.unpack(name, self._downloads / description, work / "source", self._log)

    def _fetched(self, name: str) -> apt.Package:
        package = self._packages[name]
        if not all(apt.matches(self._downloads / f, h) for f, h in package.files):
            self._update()
            with step(f"Downloading {name} {package.version}"):
                self._archive.fetch(package, self._downloads)
        return package

    def _build_kernels(self, flavours: list[str], parts: dict[str, str], work: Path) -> None:
        if not flavours:
            return
        archive = self._downloads / self._packages[kernel.SOURCE_PACKAGE].files[0][0]
        self._kernel_log.write_bytes(b"")
        tree = kernel.unpack(archive, work / "linux", self._kernel_log)
        jobs = self._options.jobs
        for flavour in flavours:
            self._cache.build(
                f"kernel-{flavour}",
                parts[f"kernel-{flavour}"],
                partial(kernel.build, tree, flavour, work / flavour, jobs, self._kernel_log),
            )

    # Putting together.

    def _assemble(self, parts: dict[str, str]) -> None:
        output = self._options.output
        recipe = key(recipe_hash(), {k: v for k, v in parts.items() if "kernel-" not in k})
        flavours = set(bundle.read_flavours(output, recipe)) | set(self._options.flavours)
        versions = {name: package.version for name, package in self._packages.items()}
        versions["linux"] = versions.pop(kernel.SOURCE_PACKAGE)
        try:
            output.mkdir(parents=True, exist_ok=True)
            _put(output / "initrd.cpio", self._initrd(parts))
            for flavour in self._options.flavours:
                built = self._cache.path(f"kernel-{flavour}", parts[f"kernel-{flavour}"])
                _put(output / f"vmlinux-{flavour}", (built / "vmlinux").read_bytes())
            _put(output / "NOTICE", bundle.notice(versions))
            # Last, because whoever finds it may rely on the rest.
            text = bundle.description(sorted(flavours), recipe, versions)
            _put(output / "bundle.json", text)
        except OSError as error:
            raise BuildError(f"{output} cannot be written: {error.strerror}") from error
        note(f"The guest ({', '.join(sorted(flavours))}) is in {output}")

    def _initrd(self, parts: dict[str, str]) -> bytes:
        programs = {
            name: self._cache.path(tool.name, parts[tool.name]) / name
            for tool in tools.TOOLS
            for name in tool.programs
        }
        init, busybox = programs.pop("init"), programs.pop("busybox")
        return initrd.build(init, busybox, [programs[name] for name in sorted(programs)])


def recipe_hash() -> str:
    """A hash of every file of ours that decides what is built, and from what."""
    files = {Path(module.__file__ or "") for module in (apt, bundle, cpio, initrd)}
    for flavour in kernel.FLAVOURS:
        files.update(kernel.recipe(flavour))
    for tool in tools.TOOLS:
        files.update(tools.recipe(tool))
    return key([(file.name, file.read_text()) for file in sorted(files)])


def _put(target: Path, data: bytes) -> None:
    """Writes unless it is there already, so that a build with nothing to do changes no file."""
    if not target.is_file() or target.read_bytes() != data:
        write_atomically(target, data)
