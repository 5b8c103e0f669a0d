"""The finished bundle: what is in its folder, and the words that go with it."""

import json
from pathlib import Path

from . import kernel

FORMAT = 1
NAME = "guest"
MEMORY_MIB = 64

# n8r: the line honours RTS, so that the host can hold back output and nothing is lost.
# retain_initrd: the tools that are unpacked on first use stay in the ramdisk.
_APPEND = "console=ttyS0,115200n8r quiet reboot=k panic=-1 retain_initrd"

# rootfstype=ramfs: the simpler of the two file systems that the ramdisk can be unpacked into. What
# such a host needs of any Linux, the VMM adds (pykvm/kvm/linux_options.py).
_APPEND_EMULATED = f"{_APPEND} rootfstype=ramfs"

_LICENCES = {
    "linux": "GPL-2.0-only",
    "busybox": "GPL-2.0-only",
    "fio": "GPL-2.0-only",
    "libaio": "LGPL-2.1-or-later",
    "e2fsprogs": "GPL-2.0-only; its libraries LGPL-2.0-only, BSD-3-Clause and MIT",
    "util-linux": "GPL-2.0-or-later; its libraries LGPL-2.1-or-later and BSD-3-Clause",
    "musl": "MIT",
}
_CONTENTS = {
    "linux": "vmlinux-*",
    "busybox": "busybox",
    "fio": "fio",
    "libaio": "linked into fio",
    "e2fsprogs": "mke2fs, e2fsck",
    "util-linux": "blkdiscard, fallocate, fstrim",
    "musl": "linked into every program",
}


def description(flavours: list[str], recipe: str, versions: dict[str, str]) -> bytes:
    """The text of `bundle.json`: what the VMM has to know to boot the guest."""
    contents = {
        "format": FORMAT,
        "name": NAME,
        "memory_mib": MEMORY_MIB,
        "flavours": {
            flavour: {
                "kernel": f"vmlinux-{flavour}",
                "initrd": "initrd.cpio",
                "append": _APPEND_EMULATED if flavour == "emulated" else _APPEND,
                **({"cpus": 1} if flavour == "emulated" else {}),
            }
            for flavour in kernel.FLAVOURS
            if flavour in flavours
        },
        "recipe": recipe,
        "versions": dict(sorted(versions.items())),
    }
    return (json.dumps(contents, indent=2) + "\n").encode()


def notice(versions: dict[str, str]) -> bytes:
    """The text of `NOTICE`: what the binaries are made of, and where the sources are."""
    lines = [
        "The files beside this one are programs of other projects, built from Debian's source",
        "packages by pykvm's recipe (guest/ in pykvm's sources). They are separate works under",
        "their own licences; pykvm's licence covers the recipe and /init only.",
        "",
    ]
    for name, version in sorted(versions.items()):
        licence = _LICENCES.get(name, "see the source package")
        lines.append(f"{name} {version} ({_CONTENTS.get(name, name)}): {licence}")
    lines += [
        "",
        "The exact corresponding sources are the Debian source packages of these versions (for",
        "the kernel, the package linux-source), with the edits in guest/recipe/edits.py made to",
        "the kernel, and those in guest/recipe/shell_edits.py to busybox. `make guest-sources` in",
        "pykvm's sources collects them with the recipe, to be published beside these binaries.",
        "Licence texts are in the source packages; on a Debian system GPL and LGPL are in",
        "/usr/share/common-licenses.",
        "",
    ]
    return "\n".join(lines).encode()


def read_flavours(folder: Path, recipe: str) -> list[str]:
    """The flavours that a bundle built by this recipe holds already; none for any other bundle."""
    try:
        contents = json.loads((folder / "bundle.json").read_bytes())
        if contents.get("recipe") != recipe:
            return []
        return [f for f in contents["flavours"] if (folder / f"vmlinux-{f}").is_file()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
