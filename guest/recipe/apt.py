"""Packages from the machine's own Debian archive, through a private apt configuration.

The machine's configuration may lack source entries, and is not ours to edit. So its entries are
copied, with sources added, into a folder of our own, where apt also keeps its lists and downloads.
Signatures are checked as the machine's entries say (Signed-By, trusted keys).
"""

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .problem import BuildError
from .progress import capture, run

_ETC = Path("/etc/apt")
_FILE = re.compile(r"^'(?P<url>[^']+)' (?P<name>\S+) (?P<size>\d+) (?P<hash>\S+)$")
_NETWORK = "Check the network, and that /etc/apt names a Debian archive that can be reached"


@dataclass(frozen=True)
class Package:
    """A package as the archive offers it: its version, and (file name, hash) of each file.

    A source package's version is the one in its file names, without the epoch.
    """

    name: str
    version: str
    files: tuple[tuple[str, str], ...]
    request: str


def with_sources_one_line(text: str) -> list[str]:
    """The `deb` lines of a `sources.list` file, each followed by its `deb-src` counterpart."""
    lines = []
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if line.startswith(("deb ", "deb\t")):
            lines += [line, "deb-src" + line[len("deb") :]]
    return lines


def with_sources_deb822(text: str) -> list[str]:
    """The enabled binary stanzas of a `.sources` file, with "Types: deb deb-src"."""
    stanzas = []
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        if not re.search(r"(?mi)^Types:.*\bdeb(\s|$)", stanza):
            continue
        if re.search(r"(?mi)^Enabled:\s*(no|false)\b", stanza):
            continue
        stanzas.append(re.sub(r"(?mi)^Types:.*$", "Types: deb deb-src", stanza.strip()))
    return stanzas


def is_debian(entry: str, codename: str) -> bool:
    """Whether an entry is of Debian's own archive for this release, judged by its suites."""
    return bool(
        re.search(rf"(^|[\s/]){re.escape(codename)}(-security|-updates)?(?=[\s/]|$)", entry)
    )


def machine_entries(etc: Path = _ETC) -> tuple[list[str], list[str]]:
    """The machine's entries with sources added: one-line entries, and deb822 stanzas."""
    lists = [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]
    lines = [line for f in lists if f.is_file() for line in with_sources_one_line(f.read_text())]
    stanzas = [
        stanza
        for f in sorted(etc.glob("sources.list.d/*.sources"))
        for stanza in with_sources_deb822(f.read_text())
    ]
    return lines, stanzas


def matches(file: Path, announced: str) -> bool:
    """Whether a downloaded file is there and has the hash that apt announced ("SHA256:...")."""
    kind, _, digest = announced.partition(":")
    if not file.is_file() or kind.lower() not in hashlib.algorithms_available:
        return False
    with file.open("rb") as data:
        return hashlib.file_digest(data, kind.lower()).hexdigest() == digest


def _codename() -> str:
    try:
        found = re.search(r"(?m)^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    except OSError:
        found = None
    return found.group(1) if found else "stable"


class Archive:
    """The archive, seen through a configuration in `folder`, which is created."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log
        self._environment = {"APT_CONFIG": str(folder / "apt.conf")}

    def update(self) -> None:
        """Fetches the package lists. Raises BuildError when the archive cannot be reached."""
        if not shutil.which("apt-get"):
            raise BuildError("apt-get is missing: the guest is built from Debian's packages")
        lines, stanzas = machine_entries()
        codename = _codename()
        ours = (
            [entry for entry in lines if is_debian(entry, codename)],
            [entry for entry in stanzas if is_debian(entry, codename)],
        )
        # An entry of somebody else can neither help nor, being left out, fail. A mirror under an
        # unusual suite name is caught by trying everything.
        self._configure(*(ours if any(ours) else (lines, stanzas)))
        run(
            ["apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"],
            self._log,
            environment=self._environment,
            hint=_NETWORK,
        )

    def source(self, name: str, version: str | None = None) -> Package:
        """What `apt-get source` would fetch. Raises BuildError when there is no such package."""
        wanted = f"{name}={version}" if version else name
        text = self._ask("source", wanted, "--print-uris", "--download-only", "--only-source")
        files = self._files(text, name)
        description = next((f for f, _ in files if f.endswith(".dsc")), "")
        return Package(name, description[: -len(".dsc")].partition("_")[2], files, wanted)

    def binary(self, name: str) -> Package:
        """What `apt-get download` would fetch, likewise."""
        files = self._files(self._ask("download", name, "--print-uris"), name)
        version = files[0][0].split("_")[1].replace("%3a", ":")
        return Package(name, version, files, f"{name}={version}")

    def fetch(self, package: Package, folder: Path) -> None:
        """Downloads a package's files into `folder`, unless they are there.

        Raises BuildError when they cannot be had, or are not those that `package` names (which
        happens when the archive was updated in between).
        """
        folder.mkdir(parents=True, exist_ok=True)
        if all(matches(folder / name, hash_) for name, hash_ in package.files):
            return
        command = ["apt-get", "-q"]
        if package.files[0][0].endswith(".deb"):
            command += ["download", package.request]
        else:
            command += ["source", "--download-only", "--only-source", package.request]
        run(command, self._log, folder=folder, environment=self._environment, hint=_NETWORK)
        for name, hash_ in package.files:
            if not matches(folder / name, hash_):
                raise BuildError(f"{name} is not the file that was announced; run the build again")

    def _configure(self, lines: list[str], stanzas: list[str]) -> None:
        if not lines and not stanzas:
            raise BuildError(
                "/etc/apt names no package archive; the guest is built from Debian's packages"
            )
        shutil.rmtree(self._folder, ignore_errors=True)
        parts = self._folder / "parts"
        for place in ("parts", "state/lists/partial", "cache/archives/partial"):
            (self._folder / place).mkdir(parents=True)
        (parts / "machine.list").write_text("\n".join(lines) + "\n")
        if stanzas:
            (parts / "machine.sources").write_text("\n\n".join(stanzas) + "\n")
        (self._folder / "apt.conf").write_text(
            f'Dir::State "{self._folder}/state";\n'
            f'Dir::Cache "{self._folder}/cache";\n'
            f'Dir::Etc::SourceList "/dev/null";\n'
            f'Dir::Etc::SourceParts "{parts}";\n'
            'Acquire::Languages "none";\n'
            # apt run by root hands downloads to its own user, who cannot write here.
            'APT::Sandbox::User "root";\n'
            # Hooks of the machine are about the machine's own lists.
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
        )

    def _ask(self, *arguments: str) -> str:
        return capture(["apt-get", "-qq", *arguments], self._environment)

    @staticmethod
    def _files(text: str, name: str) -> tuple[tuple[str, str], ...]:
        found = [m for m in map(_FILE.match, text.splitlines()) if m]
        if not found:
            raise BuildError(
                f"the package {name} is not in this machine's archive; the guest needs Debian 12"
            )
        return tuple((m["name"], m["hash"]) for m in found)
