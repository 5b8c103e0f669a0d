"""Guests by name: a kernel, an initrd and what they need on the command line.

A bundle is a folder with a ``bundle.json`` (written by guest/build.py)::

    {"format": 1, "name": "guest", "memory_mib": 64,
     "flavours": {"native": {"kernel": "vmlinux-native", "initrd": "initrd.cpio",
                             "append": "console=ttyS0"}, ...}}

Flavours are builds of one guest for different hosts: ``native`` for hosts
with hardware virtualization, ``emulated`` for those whose KVM emulates the
guest's kernel code instruction by instruction.
"""

import json
from pathlib import Path
from typing import Any

from pykvm.errors import UsageError
from pykvm.records import record

FORMAT = 1
BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
"""Where the bundles that come with pykvm lie: filled by ``make guest``, part of every wheel."""
BUNDLED = "guest"


@record
class Bundle:
    """One flavour of a guest, ready to boot.

    ``memory`` is in bytes, 0 if the bundle names none. ``cpus`` is how many
    the kernel can use, 0 if the bundle does not say.
    """

    name: str
    flavour: str
    kernel: Path
    initrd: Path | None
    append: str
    memory: int
    cpus: int


def find_bundle(guest: str, flavour: str) -> Bundle:
    """The bundle that ``guest`` names, in ``flavour`` or else in the one that there is.

    ``guest`` is a name of a bundle that comes with pykvm, and only if there
    is none, a folder (``./guest`` is always a folder). UsageError otherwise.
    """
    if guest in _names():
        return _load(BUNDLES / guest, flavour)
    folder = Path(guest)
    if guest == BUNDLED:
        raise UsageError(
            "the bundled guest is not built yet",
            "run 'make guest' in the checkout, or install a wheel, which carries it",
        )
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"no guest is called '{guest}', and as a path it {what}",
            f"give '{BUNDLED}', a folder that holds a bundle.json, or --kernel FILE",
        )
    return _load(folder, flavour)


def bundle_files(guest: str) -> list[Path]:
    """The files of the bundle that ``guest`` names, of all its flavours, as far as can be told."""
    folder = BUNDLES / guest if guest in _names() else Path(guest)
    manifest = folder / "bundle.json"
    found = [manifest]
    try:
        for entry in json.loads(manifest.read_text(encoding="utf-8"))["flavours"].values():
            found += [folder / str(entry[key]) for key in ("kernel", "initrd") if entry.get(key)]
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError):
        pass  # find_bundle says what is wrong with it
    return found


def _names() -> list[str]:
    """The bundles that come with pykvm."""
    try:
        return [entry.name for entry in BUNDLES.iterdir()]
    except OSError:
        return []


def _load(folder: Path, flavour: str) -> Bundle:
    manifest = folder / "bundle.json"
    again = "build the guest again"
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"'{folder}' holds no bundle.json, so it is not a guest",
            "guest/build.py --output DIR makes such a folder; for a kernel file use --kernel",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"'{manifest}' cannot be read: {error}", again) from None
    try:
        bundle = _bundle(folder, data, flavour)
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UsageError(f"'{manifest}' is not a guest's manifest ({error!r})", again) from None
    for file in (bundle.kernel, bundle.initrd):
        if file is not None and not file.exists():
            raise UsageError(f"'{manifest}' names '{file.name}', which is not there", again)
    return bundle


def _bundle(folder: Path, data: Any, flavour: str) -> Bundle:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']} is not {FORMAT}")
    flavours = data["flavours"]
    chosen = flavour if flavour in flavours else min(flavours)
    entry = flavours[chosen]
    initrd = entry.get("initrd")
    return Bundle(
        name=str(data["name"]),
        flavour=chosen,
        kernel=folder / str(entry["kernel"]),
        initrd=folder / str(initrd) if initrd else None,
        append=str(entry.get("append", "")),
        memory=int(data.get("memory_mib", 0)) << 20,
        cpus=int(entry.get("cpus", 0)),
    )
