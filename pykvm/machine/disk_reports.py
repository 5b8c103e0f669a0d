"""Turns the reports of a disk into events of its machine, and into stops of the guest."""

import errno
from collections.abc import Callable

from pykvm.devices.virtio_blk.hooks import DeviceHooks, IoError
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.end import EndOfRun
from pykvm.machine.events import Announcer, BlockIoError, DiskHeld, HostShortage
from pykvm.machine.outcome import Outcome
from pykvm.machine.run_control import RunControl

if TYPE_CHECKING:
    from pykvm.machine.disks import Disk


class DiskReports:
    """Receives the reports of the device of one disk, through ``hooks``.

    ``disk`` has to be set before the guest starts. The device reports in its
    own thread, which must not wait for the stop that a report causes.
    """

    disk: "Disk"

    def __init__(
        self,
        name: str,
        announcer: Announcer,
        control: RunControl,
        end: EndOfRun,
        finish: Callable[[Outcome], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """``name`` is the disk's. ``on_failure`` gets exceptions that ended a disk's thread."""
        self._name = name
        self._announcer = announcer
        self._control = control
        self._finish = finish
        self.hooks = DeviceHooks(
            on_error=self._failed_request,
            telling=control.telling,
            on_failure=on_failure,
            on_shortage=lambda lack: announcer.announce(HostShortage(name, lack)),
            on_held=lambda: announcer.announce(DiskHeld(name)),
            over=end.__bool__,
        )

    def _failed_request(self, error: IoError) -> None:
        self.disk.failed(error)
        event = BlockIoError(self._name, error)
        if not error.stops:
            self._announcer.announce(event)
            return
        if not self._announcer.heard:
            # No listener would learn that the guest waits for a resume.
            self._finish(failure(self._name, error))
        self._control.io_error(event)


def failure(name: str, error: IoError) -> Outcome:
    """The end of a run that ``error`` of the disk ``name`` stopped, and that nobody resumes."""
    cause = errno.errorcode.get(error.errno, str(error.errno))
    return Outcome.error(f"{name}: a {error.operation} failed: {cause}")
