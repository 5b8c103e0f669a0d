"""``about.json`` of a template: for people, who cannot read its key. Nothing depends on it."""

import json
import os

from pykvm.lean.typing_names import Any, Final
from pykvm.machine.config import MachineConfig
from pykvm.names import name_fields

ABOUT: Final = "about.json"
_MOST_BYTES: Final = 64 << 10


def describe(config: MachineConfig) -> dict[str, Any]:
    """What a template of ``config`` belongs to, for JSON."""
    found: dict[str, Any] = {"guest": config.guest}
    for name in ("kernel", "initrd"):
        value = getattr(config, name)
        if isinstance(value, bytes):
            found[name] = f"{len(value)} bytes of memory"
        elif value is not None:
            found |= name_fields(name, os.path.abspath(value))
    found |= {"append": config.append, "memory": config.memory, "cpus": config.cpus}
    return found


def write(folder: str, config: MachineConfig) -> None:
    """Write the description into ``folder``. OSError."""
    with open(os.path.join(folder, ABOUT), "x", encoding="ascii") as file:
        json.dump(describe(config), file)


def read(folder: str) -> dict[str, Any]:
    """The description in ``folder``; empty if there is none that makes sense."""
    try:
        with open(os.path.join(folder, ABOUT), "rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
