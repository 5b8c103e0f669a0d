"""The files that a test leaves: a folder for each test, whose name is made of the test's."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from pykvm import __version__
from pykvm.errors import UsageError, reason_of
from pykvm.machine.disks import Disk
from pykvm.names import name_fields
from pykvm.trace.events import BEGIN, DEVICE, DISK, END
from pykvm.trace.formats import JsonLines
from pykvm.trace.log import TraceLog
from pykvm.trace.reader import VERSION

_MOST_NAME: Final = 80
_HASH: Final = 8
_FRAME: Final = ("ns", "event", "disk", "queue")


def slug(name: str) -> str:
    """A folder's name for the test ``name``; different tests have different ones."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if words == name and len(words) <= _MOST_NAME:
        return words
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH]
    return f"{words[-(_MOST_NAME - _HASH - 1) :]}-{digest}".lstrip("-.")


class Artefacts:
    """The files of one test, in a folder of its own below ``base``, made with the first file.

    A folder of an earlier run stays, and this one gets a number.
    """

    def __init__(self, base: Callable[[], Path], name: str) -> None:
        self._base = base
        self._name = name
        self._folder: Path | None = None

    def __bool__(self) -> bool:
        """There are files."""
        return self._folder is not None

    @property
    def folder(self) -> Path:
        """The folder. UsageError if it cannot be made."""
        if self._folder is None:
            self._folder = self._make()
        return self._folder

    def _make(self) -> Path:
        number = 1
        base = self._base()
        try:
            base.mkdir(parents=True, exist_ok=True)
            while True:
                folder = base / (f"{self._name}-{number}" if number > 1 else self._name)
                try:
                    folder.mkdir()
                except FileExistsError:
                    number += 1
                else:
                    return folder
        except OSError as error:
            raise UsageError(
                f"the folder {base} for the files of tests cannot be used: {reason_of(error)}",
                "give a different one: --pykvm-artefacts DIR",
            ) from None

    def write(self, name: str, text: str) -> None:
        """Write the file ``name``, unless there is nothing to write. UsageError."""
        if not text:
            return
        path = self.folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"the file {path} cannot be written: {reason_of(error)}") from None


def trace_text(trace: TraceLog, disks: Iterable[Disk]) -> str:
    """The events of ``trace`` as a file that ``pykvm trace`` reads; "" if there are none."""
    events = list(trace)
    if not events:
        return ""
    encode = JsonLines().encode
    began = events[0]["ns"]
    head = {"version": VERSION, "pykvm": __version__, "time_ns": time.time_ns()}
    lines = [encode(BEGIN, began, "", DEVICE, head)]
    for disk in disks:
        facts: dict[str, Any] = {
            **name_fields("path", disk.config.name),
            "sectors": disk.device.image.capacity,
            "readonly": disk.config.readonly,
        }
        lines.append(encode(DISK, began, disk.name, DEVICE, facts))
    for event in events:
        fields = {name: value for name, value in event.items() if name not in _FRAME}
        queue = event.get("queue", DEVICE)
        lines.append(encode(event["event"], event["ns"], event["disk"], queue, fields))
    lines.append(encode(END, events[-1]["ns"], "", DEVICE, {}))
    return "".join(lines)
