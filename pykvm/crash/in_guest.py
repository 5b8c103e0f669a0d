"""A check of a survivor by a guest, whose kernel recovers the filesystem."""

from typing import Final

from pykvm.crash.checks import Survivor
from pykvm.devices.virtio_blk.modes import Locking
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import shown
from pykvm.guest.errors import GuestDied, GuestTimeout
from pykvm.guest.snapshot import Snapshot

_MOST: Final = 2000
"""Characters of a command's output that a failure keeps."""


class InGuest:
    """A check: a guest begins at ``snapshot``, gets the survivor as a new disk, and runs a command.

    The check fails if the command's status is not 0, if it takes longer than ``timeout`` seconds
    (None: the snapshot's limit), or if the guest's kernel dies. The guest's writes stay in the
    guest. Several threads may check at a time.
    """

    def __init__(self, snapshot: Snapshot, command: str, timeout: float | None = None) -> None:
        """``command`` is a line for the guest's shell, in which ``$DISK`` is the disk's device.

        ``$MARKS`` has the marks before the cut, one a line.
        """
        self._snapshot = snapshot
        self._command = command
        self._timeout = timeout

    def __call__(self, survivor: Survivor) -> None:
        """Check ``survivor``. AssertionError if it is wrong."""
        disk = DiskConfig(path=survivor.path, snapshot=True, locking=Locking.OFF)
        with self._snapshot.restore() as guest:
            letter = chr(ord("a") + len(guest.disks))
            environment = {"DISK": f"/dev/vd{letter}", "MARKS": "\n".join(survivor.marks)}
            try:
                guest.add_disk(disk)
                done = guest.run(self._command, check=False, timeout=self._timeout, env=environment)
            except (GuestDied, GuestTimeout) as error:
                raise AssertionError(f"in the guest: {error}") from None
        if done.status:
            words = (done.stdout + done.stderr).decode("utf-8", "replace")
            raise AssertionError(
                f"in the guest: '{self._command}' ended with status {done.status}: "
                f"{shown(' '.join(words.split()), most=_MOST)}"
            )
