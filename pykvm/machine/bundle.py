"""Bundles: guests by name, each with a kernel, an initrd and kernel options.

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

from pykvm.errors import UsageError, reason_of
from pykvm.lean.records import record
from pykvm.lean.typing_names import Any

FORMAT = 1
BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
"""The folder of pykvm's own bundles. ``make guest`` fills it, and every wheel contains it."""
BUNDLED = "guest"
_KINDS = {int: "a whole number", str: "text", dict: "an object"}


@record
class Bundle:
    """One flavour of a guest, ready to boot.

    ``memory`` is in bytes; 0 if the bundle does not say. ``cpus`` is the number of CPUs that the
    kernel can use; 0 if the bundle does not say.
    """

    name: str
    flavour: str
    kernel: Path
    initrd: Path | None
    append: str
    memory: int
    cpus: int


def find_bundle(guest: str, flavour: str) -> Bundle:
    """The bundle ``guest``, in ``flavour`` if it has that, else in a flavour that it has.

    ``guest`` is the name of one of pykvm's own bundles, or else a folder
    (``./guest`` is always a folder). UsageError if it is neither.
    """
    if guest in _names():
        return _load(BUNDLES / guest, flavour)
    if not guest:
        raise UsageError("the guest's name is empty", f"give '{BUNDLED}', or a folder")
    folder = Path(guest)
    if guest == BUNDLED:
        raise UsageError(
            "the bundled guest is not built yet",
            "run 'make guest' in the checkout, or install a wheel, which carries it",
        )
    if not folder.is_dir():
        mistake = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"no guest is called '{guest}', and as a path it {mistake}",
            f"give '{BUNDLED}', a folder that holds a bundle.json, or --kernel FILE",
        )
    return _load(folder, flavour)


def bundle_files(guest: str) -> list[Path]:
    """The files of all flavours of the bundle ``guest``; those that its manifest tells."""
    folder = BUNDLES / guest if guest in _names() else Path(guest)
    manifest = folder / "bundle.json"
    found = [manifest, folder / "NOTICE"]
    try:
        for entry in json.loads(manifest.read_text(encoding="utf-8"))["flavours"].values():
            found += [folder / str(entry[key]) for key in ("kernel", "initrd") if entry.get(key)]
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError):
        pass  # find_bundle reports the mistake
    return found


def _names() -> list[str]:
    """The names of pykvm's own bundles."""
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
    except OSError as error:
        raise UsageError(f"'{manifest}' cannot be read: {reason_of(error)}", again) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{manifest}' is not JSON: {error}", again) from None
    try:
        bundle = _bundle(folder, data, flavour)
    except ValueError as error:
        raise UsageError(f"'{manifest}' is not a guest's manifest: {error}", again) from None
    for file in (bundle.kernel, bundle.initrd):
        if file is not None and not file.exists():
            raise UsageError(f"'{manifest}' names '{file.name}', which does not exist", again)
    return bundle


def _bundle(folder: Path, data: Any, flavour: str) -> Bundle:
    version = _member(data, "it", "format", int)
    if version != FORMAT:
        raise ValueError(f"its format is {version}, and this pykvm reads format {FORMAT}")
    flavours = _member(data, "it", "flavours", dict)
    if not flavours:
        raise ValueError("it has no flavour")
    chosen = flavour if flavour in flavours else min(flavours)
    entry, where = flavours[chosen], f"its flavour '{chosen}'"
    initrd = _member(entry, where, "initrd", str, "")
    return Bundle(
        name=_member(data, "it", "name", str),
        flavour=chosen,
        kernel=folder / _member(entry, where, "kernel", str),
        initrd=folder / initrd if initrd else None,
        append=_member(entry, where, "append", str, ""),
        memory=_member(data, "it", "memory_mib", int, 0) << 20,
        cpus=_member(entry, where, "cpus", int, 0),
    )


def _member(table: Any, where: str, key: str, kind: type, default: Any = None) -> Any:
    """``table[key]`` of type ``kind``, or ``default``; ValueError, which names ``where``.

    The key is required if ``default`` is None.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{where} is not an object")
    value = table.get(key, default)
    if value is None or (value == "" and default is None):
        raise ValueError(f"{where} has no '{key}'")
    # True is an int in Python.
    if (
        not isinstance(value, kind)
        or isinstance(value, bool)
        or (isinstance(value, int) and value < 0)
    ):
        raise ValueError(f"'{key}' of {where} is not {_KINDS[kind]}")
    return value
