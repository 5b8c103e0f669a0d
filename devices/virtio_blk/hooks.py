"""The reports of a device to its owner: failed requests, and the hooks that the device calls."""

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from pykvm.devices.virtio_blk.modes import ErrorAction
from pykvm.lean.records import keyword_record, record

NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""The errors of a host that has no space left, or whose user has no quota left."""


@record
class IoError:
    """A request that the host could not carry out, announced once for each time it fails."""

    operation: str
    """``"read"``, ``"write"``, ``"flush"``, ``"discard"`` or ``"write-zeroes"``."""
    sector: int
    """The sector of 512 bytes where the request's first range begins."""
    length: int
    """The bytes of all ranges of the request."""
    errno: int
    """The host's error."""
    action: ErrorAction
    """The action that the disk's policy took."""
    lost: bool = False
    """True if a sync of the image failed, so data in the host's page cache may be lost. No flush of
    this run succeeds any more, even if the cause is removed."""

    @property
    def full(self) -> bool:
        """True if the host only lacks space: a retry succeeds once there is more."""
        return self.errno in NO_SPACE and not self.lost

    @property
    def stops(self) -> bool:
        """True if the guest stops for this error."""
        return self.action is ErrorAction.STOP


def _raise_in_thread(error: BaseException) -> None:
    """Treat ``error`` as threading treats an exception that ends a thread."""
    thread = threading.current_thread()
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, thread))
    )


@keyword_record
class DeviceHooks:
    """The functions that a device calls to report to its owner.

    They run in the disk's threads, or in the driver's thread where they say so. None of them may
    call the device.
    """

    on_error: Callable[[IoError], None] = lambda error: None
    """Called with each request that the host could not carry out, before its action takes effect.
    If the action is STOP, the disk has halted, and the owner stops the guest."""
    telling: AbstractContextManager[object] = nullcontext()
    """Held from the halt of a STOP until ``on_error`` returns. An owner that holds it while it
    resumes the disk never resumes a disk that has halted without having reported the reason."""
    on_failure: Callable[[BaseException], None] = _raise_in_thread
    """Called with an exception that ended a disk's thread: a bug in pykvm."""
    on_shortage: Callable[[str], None] = lambda lack: None
    """Called with the resource that the host lacks, after the device has asked for a reset. Also in
    the driver's thread."""
    on_held: Callable[[], None] = lambda: None
    """Called in the driver's thread when the driver starts a device that its transport holds."""
    over: Callable[[], bool] = lambda: False
    """True once the run has ended: from then on, the driver's thread waits for no operation."""


NO_HOOKS: Final = DeviceHooks()
"""The hooks of a device whose owner wants no reports."""
