"""Snapshots of prepared guests, one for each spec, from which the guests of tests begin."""

from contextlib import ExitStack
from typing import NamedTuple

from pykvm.errors import UsageError
from pykvm.guest.boot import boot
from pykvm.guest.errors import GuestDied
from pykvm.guest.guest import Guest
from pykvm.guest.snapshot import Snapshot
from pykvm.pytest_plugin.places import Places
from pykvm.pytest_plugin.spec import Spec


class _Made(NamedTuple):
    spec: Spec
    snapshot: Snapshot | GuestDied


class Pool:
    """The snapshots of a session. Each is made when a test first asks for it.

    Its guest begins from the template of all processes, so only the first process boots.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._made: list[_Made] = []

    def snapshot(self, spec: Spec) -> Snapshot:
        """The snapshot of a prepared guest of ``spec``. UsageError, HostError, GuestError."""
        found = next((made.snapshot for made in self._made if made.spec.same_guest(spec)), None)
        if found is None:
            try:
                found = self._make(spec)
            except GuestDied as death:
                # The next test need not wait for the same boot.
                found = death
            self._made.append(_Made(spec, found))
        if isinstance(found, GuestDied):
            raise GuestDied(found.outcome, found.console, "the start of the guest for the tests")
        return found

    def _make(self, spec: Spec) -> Snapshot:
        if not spec.has_agent:
            raise UsageError(
                "a kernel alone has no agent, so no snapshot can be taken when it has booted",
                "use the fixture pykvm_machine, or name a guest, too",
            )
        with self._places.take(spec.memory), boot(**spec.options) as guest:
            prepare(guest, spec)
            return guest.snapshot()

    def close(self) -> None:
        """Free them."""
        with ExitStack() as stack:
            for _, snapshot in self._made:
                if isinstance(snapshot, Snapshot):
                    stack.callback(snapshot.close)
        self._made.clear()


def prepare(guest: Guest, spec: Spec) -> None:
    """Prepare ``guest`` as ``spec`` says."""
    if isinstance(spec.prepare, str):
        guest.run(spec.prepare)
    elif spec.prepare is not None:
        spec.prepare(guest)
