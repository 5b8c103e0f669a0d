"""The exact corresponding sources of the guest's binaries, to be published beside them."""

import hashlib
import shutil
from pathlib import Path

from .builder import Builder
from .problem import BuildError
from .progress import note

_GUEST = Path(__file__).parent.parent
_README = """\
The complete corresponding sources of the programs in pykvm's bundled guest: Debian source packages
(unpack one with `dpkg-source -x NAME.dsc`), the kernel's source tree as Debian packages it, with
its patches applied (linux-source-*.deb; unpack it with `dpkg-deb -x`), and the recipe that builds
the binaries from them (recipe/guest; `python recipe/guest/build.py --flavour all` on Debian 12),
which makes the edits of recipe/guest/recipe/edits.py to the kernel, and those of shell_edits.py to
busybox. SHA256SUMS covers all files.
"""


def collect(builder: Builder, folder: Path) -> None:
    """Leaves source packages, recipe, README and SHA256SUMS in `folder`."""
    packages = builder.packages()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, package in sorted(packages.items()):
            note(f"Collecting {name} {package.version}")
            builder.fetch(name, folder)
        _copy_recipe(folder / "recipe" / "guest")
        (folder / "README").write_text(_README)
        (folder / "SHA256SUMS").write_text(_checksums(folder))
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror}") from error
    note(f"The sources are in {folder}")


def _copy_recipe(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", ".*", "bare")
    shutil.copytree(_GUEST, target, ignore=ignored)


def _checksums(folder: Path) -> str:
    lines = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"):
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        lines.append(f"{digest}  {file.relative_to(folder)}\n")
    return "".join(lines)
