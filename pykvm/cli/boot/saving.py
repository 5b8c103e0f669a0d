"""``--save-in DIR``: snapshots of the running guest, by Ctrl-a w.

The sandbox forbids later imports, so this module imports all that a snapshot needs.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pykvm.host.libc
import pykvm.machine.resetting
import pykvm.machine.saving
import pykvm.memory.frozen
import pykvm.snapshot.content
import pykvm.snapshot.writing  # noqa: F401 - as above
from pykvm.errors import PykvmError, UsageError, shown
from pykvm.host.threads import start
from pykvm.machine.machine import Machine
from pykvm.machine.snapshot import check_can_be_kept
from pykvm.memory.changed import keep_pagemap

_NAME = "snapshot-"


def checked_folder(path: str) -> Path:
    """The folder of ``--save-in``; UsageError unless snapshots can be made there. OSError."""
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise UsageError(f"--save-in {shown(path)}: it is no folder", "give one that exists")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"--save-in {shown(path)}: nothing can be made there", "give a folder of your own"
        )
    keep_pagemap()
    # At a snapshot an overlay gets a new temporary file, which cannot be made elsewhere then.
    os.environ["TMPDIR"] = str(folder)
    return folder


def prepare(machine: Machine) -> None:
    """Find out and import now what a snapshot of ``machine`` needs and cannot read later.

    UsageError if there can be none.
    """
    check_can_be_kept(machine.config)
    hardware = machine.hardware
    assert hardware.guest_hash
    assert hardware.cpuid_hash
    if machine.disks:
        import pykvm.devices.virtio_blk.layers.layer_files
        import pykvm.devices.virtio_blk.saved  # noqa: F401


class Saver:
    """Saves ``machine`` in ``folder`` in a thread of its own, and tells the user by ``say``."""

    def __init__(self, machine: Machine, folder: Path, say: Callable[[str], None]) -> None:
        self._machine = machine
        self._folder = folder
        self._say = say
        self._busy = threading.Lock()
        self._threads: list[threading.Thread] = []

    def save(self) -> None:
        """Begin to save the guest as the first free ``snapshot-N``."""
        if not self._busy.acquire(blocking=False):
            self._say("the guest is being saved already")
            return
        thread = threading.Thread(target=self._run, name="saving", daemon=True)
        try:
            start(thread, "saving the guest")
        except PykvmError as error:
            self._busy.release()
            self._say(str(error))
            return
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]

    def close(self) -> None:
        """Wait for the end of what has begun."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            text = self._save()
        finally:
            # Before the user reads that it is done, and types the key again.
            self._busy.release()
        self._say(text)

    def _save(self) -> str:
        """Save the guest; a sentence on how that went."""
        number = 1
        while os.path.lexists(self._folder / f"{_NAME}{number}"):
            number += 1
        folder = self._folder / f"{_NAME}{number}"
        try:
            self._machine.save(folder)
        except (PykvmError, TimeoutError) as error:
            return f"the guest is not saved: {error}"
        return f"the guest is saved in {folder}: pykvm snapshot restore {folder}"
