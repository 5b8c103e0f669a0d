"""Tells the user why the guest or its disk has stopped, and how to let it continue."""

import errno
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pykvm.errors import error_text
from pykvm.machine.events import BlockIoError, DiskHeld, Event, HostShortage, Resume, Stop

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk import IoError


_LOST: Final = (
    "data that the guest wrote since its last flush may be lost, and every later flush of this "
    "run fails"
)


class StopReporter:
    """Listens to a machine's events, because a stopped guest looks like one that hangs.

    ``images`` are the paths of the disks by their names. ``ways`` are phrases for the ways to let
    the guest continue. ``say`` takes a sentence. If there is no way to continue, ``give_up``
    takes the sentence on the error that stopped the guest. ``rooms`` has the folder of each disk
    whose written data goes to a folder instead of the image.
    """

    def __init__(
        self,
        images: Mapping[str, str],
        ways: Sequence[str],
        say: Callable[[str], None],
        rooms: Mapping[str, str] = MappingProxyType({}),
        *,
        give_up: Callable[[str], None],
    ) -> None:
        self._images = images
        self._rooms = rooms
        self._how = " or ".join(ways)
        self._say = say
        self._give_up = give_up
        # Only the first failure of each disk is reported: later ones have the same cause.
        self._failed: set[str] = set()
        # Reported once, because all later flushes fail.
        self._lost: set[str] = set()
        # Reported once, because a guest may try again and again.
        self._lacks: set[tuple[str, str]] = set()
        self._held: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Tell the user about ``event``, if it matters to the user."""
        if isinstance(event, BlockIoError):
            if event.error.stops and event.device not in self._failed:
                self._failed.add(event.device)
                (self._say if self._how else self._give_up)(self._failure(event))
            elif event.error.lost and event.device not in self._lost:
                self._lost.add(event.device)
                self._say(f"{self._where(event.device)}: {describe(event.error)}; {_LOST}")
        elif isinstance(event, HostShortage):
            if (event.device, event.lack) not in self._lacks:
                self._lacks.add((event.device, event.lack))
                where = self._where(event.device)
                advice = "the disk does no I/O until the guest resets it"
                self._say(f"{where}: the host cannot serve the disk, {event.lack}; {advice}")
        elif isinstance(event, DiskHeld):
            if event.device not in self._held:
                self._held.add(event.device)
                self._say(
                    f"{self._where(event.device)}: its requests wait, because the guest's driver "
                    "has not made it a bus master (bit 2 of the PCI command register)"
                )
        elif isinstance(event, Resume):
            self._failed.clear()
        elif isinstance(event, Stop) and not self._failed and self._how:
            self._say(f"the guest is stopped; {self._how} lets it continue")

    def _failure(self, event: BlockIoError) -> str:
        error = event.error
        if not self._how:
            happens = "the run ends here"
            advice = f"{_LOST}: check the image's contents" if error.lost else self._cure(event)
            advice += "; with --monitor, a guest can continue after such an error"
        else:
            happens = "the guest is stopped"
            if error.lost:
                advice = f"{_LOST}: end the run, and check the image's contents"
            else:
                advice = f"{self._cure(event)}, then {self._how} tries again"
        return f"{self._where(event.device)}: {describe(error)}; {happens}: {advice}"

    def _cure(self, event: BlockIoError) -> str:
        if not event.error.full:
            return "remove the cause"
        room = self._rooms.get(event.device)
        where = f" in {room}, where snapshot=on keeps the guest's writes" if room else ""
        quota = " or raise the quota" if event.error.errno == errno.EDQUOT else ""
        return f"make space{where}{quota}"

    def _where(self, device: str) -> str:
        return f"{device} ({self._images[device]})"


def describe(error: "IoError") -> str:
    """The operation that failed and the reason, without a full stop."""
    operation = f"a {error.operation}"
    if error.operation != "flush":
        operation += f" of {error.length} bytes at sector {error.sector}"
    name = errno.errorcode.get(error.errno, str(error.errno))
    return f"{operation} failed: {error_text(error.errno)} ({name})"
