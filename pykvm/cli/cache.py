"""``pykvm cache``: lists and removes the templates in the user's cache folder."""

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from pykvm.cache import cache_folder
from pykvm.cli.parser import Parser
from pykvm.cli.say import emit
from pykvm.errors import UsageError, reason_of, shown
from pykvm.names import json_text, name_fields
from pykvm.templates.store import Store, template_limit
from pykvm.templates.upkeep import Kept, failures, kept, tidy

_MOST_TEXT = 60
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def run_cache(arguments: Sequence[str]) -> int:
    """Run ``pykvm cache`` and return the exit status."""
    options = parser().parse_args(arguments)
    folder = cache_folder()
    if not folder:
        raise UsageError("this user has no home, so no cache", "set PYKVM_CACHE to a folder")
    store = Store(os.path.join(os.path.abspath(folder), "templates"), template_limit())
    try:
        (_list if options.action == "list" else _clear)(store, options.json)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(
            f"the templates in {shown(store.folder)} cannot be read: {reason_of(error)}",
            "set PYKVM_CACHE to a folder of your own",
        ) from None
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``pykvm cache``."""
    made = Parser(
        prog="pykvm cache",
        description="List or remove the templates from which 'pykvm boot --exec' starts guests.",
        epilog="A removed template is made anew when it is needed. Running guests go on.",
        allow_abbrev=False,
    )
    made.add_argument(
        "action", choices=("list", "clear"), help="list shows the templates; clear removes all"
    )
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def _list(store: Store, as_json: bool) -> None:
    templates, failed = kept(store), failures(store)
    rows = [_row(one) for one in reversed(templates)]
    if as_json:
        _emit_json(store, "templates", templates, failed=[{"reason": text} for text in failed])
        return
    lines = [*rows, *(f"none yet: {shown(text)}" for text in failed)]
    total = sum(one.bytes for one in templates)
    lines.append(
        f"{_count(templates)}, {_size(total)} of at most {_size(store.limit)} in "
        f"{shown(store.folder)}"
    )
    emit("\n".join(lines) + "\n")


def _clear(store: Store, as_json: bool) -> None:
    gone = tidy(store, 0, forget=True)
    left = {one.key for one in kept(store)}
    if as_json:
        _emit_json(store, "removed", gone, left=len(left))
    else:
        total = _size(sum(one.bytes for one in gone))
        emit(f"removed {_count(gone)}, {total}, from {shown(store.folder)}\n")
    if left:
        raise UsageError(
            f"{len(left)} of the templates cannot be removed", "look at the folder's permissions"
        )


def _emit_json(store: Store, name: str, templates: list[Kept], **more: Any) -> None:
    made = {
        **name_fields("folder", store.folder),
        "limit": store.limit,
        "bytes": sum(one.bytes for one in templates),
        name: [
            {
                "key": one.key,
                "bytes": one.bytes,
                "used": int(one.used),
                "about": one.about,
            }
            for one in templates
        ],
        **more,
    }
    emit(json_text(made) + "\n")


def _row(one: Kept) -> str:
    return f"{one.key[:8]}  {_size(one.bytes):>8}  used {_age(one.used):>6} ago  {_text(one.about)}"


def _text(found: dict[str, Any]) -> str:
    """The description of a template on one line. Its values may be anything."""
    parts = [str(found.get("guest", "unknown guest"))]
    parts += [f"--{name} {found[name]}" for name in ("kernel", "initrd") if name in found]
    if memory := found.get("memory"):
        parts.append(f"-m {memory >> 20}M" if isinstance(memory, int) else "")
    if found.get("cpus", 1) != 1:
        parts.append(f"--cpus {found['cpus']}")
    if append := found.get("append"):
        parts.append(f"--append '{append}'")
    return " ".join(shown(part, most=_MOST_TEXT) for part in parts)


def _count(templates: list[Kept]) -> str:
    return f"{len(templates)} template{'' if len(templates) == 1 else 's'}"


def _size(number: int) -> str:
    return f"{number / (1 << 20):.1f} MiB"


def _age(used: float) -> str:
    age = max(0, int(time.time() - used))
    size, unit = next(((size, unit) for size, unit in _UNITS if age >= size), (1, "s"))
    return f"{age // size} {unit}"
