"""A saved machine as a folder: ``manifest.json``, ``state.json``, ``ram``, and files of its disks.

``manifest.json`` identifies the machine, and fits on a screen. ``state.json``
holds the fields of every part; data is written as ``{"hex": "…"}``. ``ram`` is
guest memory, with holes for pages of zeros. A restored machine maps it, so it
must not change afterwards.

The manifest holds a hash of each other file. Only :func:`verify` reads them as
a whole to compare, because that takes longer than a restore.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pykvm.errors import reason_of
from pykvm.lean.typing_names import Any, Self
from pykvm.snapshot.fields import Fields, Saved, SnapshotError

FORMAT = 3
MANIFEST, STATE, RAM = "manifest.json", "state.json", "ram"
MOST_JSON = 16 << 20
"""Bytes of a file that is read as a whole.

A machine's state takes some 60 KiB for each vCPU, and two serial ports with much input 4 MiB.
"""


class OpenFolder:
    """An open folder that should hold a snapshot. All methods raise SnapshotError.

    All files are of one folder, even if a different one takes its name meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self.unreadable(reason_of(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder. Descriptors of its files stay."""
        os.close(self._fd)

    def read_manifest(self) -> Fields:
        """The manifest, of which only the format is checked."""
        fields = self._json(MANIFEST)
        version = Saved("manifest", fields).integer("format", 1, 1 << 30)
        if version != FORMAT:
            raise SnapshotError(
                f"the snapshot {self._folder} has format {version}, this pykvm reads {FORMAT}",
                "make a new snapshot with this version of pykvm",
            )
        return fields

    def read_state(self) -> Fields:
        """The state, unchecked."""
        return self._json(STATE)

    def open(self, name: str) -> int:
        """A descriptor of the regular file ``name``, for reading. The caller closes it."""
        try:
            # Opening a pipe without O_NONBLOCK would wait for a writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            raise self.unreadable(f"{name}: {reason_of(error)}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self.unreadable(f"{name}: it is no regular file")
        return fd

    def verify(self, hashes: Mapping[str, object]) -> None:
        """SnapshotError unless the files have these ``hashes``, by their names."""
        from pykvm.snapshot.content import content_hash

        for name, wanted in hashes.items():
            fd = self.open(name)
            try:
                found = content_hash(fd)
            except OSError as error:
                raise self.unreadable(f"{name}: {reason_of(error)}") from None
            finally:
                os.close(fd)
            if found != wanted:
                raise SnapshotError(
                    f"the snapshot {self._folder} has changed since it was written: "
                    f"its {name} is different",
                    "make a new snapshot",
                )

    def unreadable(self, reason: str) -> SnapshotError:
        """The error of a folder that cannot be read for ``reason``."""
        return SnapshotError(
            f"the snapshot {self._folder} cannot be read: {reason}",
            "give a folder that pykvm has written",
        )

    def _json(self, name: str) -> Fields:
        try:
            fields = json.loads(self._read(name), object_hook=_data)
        except (ValueError, RecursionError):
            raise self.unreadable(f"{name}: it is not the JSON that pykvm writes") from None
        if not isinstance(fields, dict):
            Saved(name.removesuffix(".json"), fields)
        return fields  # type: ignore[no-any-return]

    def _read(self, name: str) -> bytes:
        try:
            with open(self.open(name), "rb") as file:
                data = file.read(MOST_JSON + 1)
        except OSError as error:
            raise self.unreadable(f"{name}: {reason_of(error)}") from None
        if len(data) > MOST_JSON:
            raise self.unreadable(f"{name}: it is too large")
        return data


class OpenSnapshot(OpenFolder):
    """A snapshot that was read: ``manifest``, ``state``, and ``ram``, an open descriptor."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``. SnapshotError if it is no snapshot that this version can read."""
        super().__init__(folder)
        try:
            self.manifest = self.read_manifest()
            self.state = self.read_state()
            self.ram = self.open(RAM)
        except BaseException:
            super().close()
            raise

    @property
    def ram_size(self) -> int:
        """Bytes of guest memory."""
        return os.fstat(self.ram).st_size

    def close(self) -> None:
        """Close the folder and ``ram``. A mapping of it stays."""
        super().close()
        os.close(self.ram)


def read_manifest(folder: Path) -> Fields:
    """The manifest of ``folder``, alone. SnapshotError if it is none that this version can read."""
    with OpenFolder(folder) as opened:
        return opened.read_manifest()


def verify(folder: Path, hashes: Mapping[str, object]) -> None:
    """SnapshotError unless the files in ``folder`` have these ``hashes``, by their names."""
    with OpenFolder(folder) as opened:
        opened.verify(hashes)


def _data(value: dict[str, Any]) -> object:
    if value.keys() == {"hex"} and isinstance(value["hex"], str):
        return bytes.fromhex(value["hex"])
    return value
