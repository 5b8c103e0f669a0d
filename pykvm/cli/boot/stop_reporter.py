"""Tells the user why the guest or its disk has stopped, and how it goes on again."""

import errno
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pykvm.errors import error_text
from pykvm.machine.events import BlockIoError, DiskHeld, Event, HostShortage, Resume, Stop

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk import IoError


_LOST: Final = (
    "what the guest wrote since its last flush may be lost, and no flush of this run succeeds "
    "any more"
)


class StopReporter:
    """A listener of a machine. A guest that is stopped looks like one that hangs.

    ``images`` are the paths of the disks by their names, ``ways`` the phrases
    for what lets the guest go on, and ``say`` takes a sentence. Without any
    way to go on, ``give_up`` takes the sentence on the error that stopped it.
    ``rooms`` are the folders that need space for disks whose images do not.
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
        # One failure of each disk is enough: those that follow have the same cause.
        self._failed: set[str] = set()
        # Said once: all flushes fail from then on.
        self._lost: set[str] = set()
        # A guest may ask again and again for what the host has not.
        self._lacks: set[tuple[str, str]] = set()
        self._held: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Say what is to be said about ``event``."""
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
                advice = "nothing is read or written until the guest resets it"
                self._say(f"{where}: the host cannot serve it, {event.lack}; {advice}")
        elif isinstance(event, DiskHeld):
            if event.device not in self._held:
                self._held.add(event.device)
                self._say(
                    f"{self._where(event.device)}: the guest's driver has not made it a bus master "
                    "(bit 2 of the PCI command register); its requests wait until that is done"
                )
        elif isinstance(event, Resume):
            self._failed.clear()
        elif isinstance(event, Stop) and not self._failed and self._how:
            self._say(f"the guest is stopped; {self._how} lets it go on")

    def _failure(self, event: BlockIoError) -> str:
        error = event.error
        if not self._how:
            happens = "the run ends here"
            advice = f"{_LOST}: check what the image holds" if error.lost else self._cure(event)
            advice += "; with --monitor, a guest can go on after such an error"
        else:
            happens = "the guest is stopped"
            if error.lost:
                advice = f"{_LOST}: end it, and check what the image holds"
            else:
                advice = f"{self._cure(event)}, then {self._how} tries again"
        return f"{self._where(event.device)}: {describe(error)}; {happens}: {advice}"

    def _cure(self, event: BlockIoError) -> str:
        if not event.error.full:
            return "mend it"
        room = self._rooms.get(event.device)
        where = f" in {room}, where snapshot=on keeps what the guest writes" if room else ""
        quota = " or raise the quota" if event.error.errno == errno.EDQUOT else ""
        return f"make space{where}{quota}"

    def _where(self, device: str) -> str:
        return f"{device} ({self._images[device]})"


def describe(error: "IoError") -> str:
    """What failed and why, without a full stop."""
    what = f"a {error.operation}"
    if error.operation != "flush":
        what += f" of {error.length} bytes at sector {error.sector}"
    name = errno.errorcode.get(error.errno, str(error.errno))
    return f"{what} failed: {error_text(error.errno)} ({name})"
