"""Snapshots of prepared guests, one for each spec, from which the guests of tests begin."""

import warnings
from contextlib import ExitStack, suppress
from typing import NamedTuple

from pykvm.errors import UsageError
from pykvm.guest.boot import boot
from pykvm.guest.errors import GuestDied, GuestError, GuestTimeout, last_lines
from pykvm.guest.guest import Guest
from pykvm.guest.snapshot import Snapshot
from pykvm.guest.start import configuration
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import OutcomeKind
from pykvm.pytest_plugin.places import Places
from pykvm.pytest_plugin.spec import Spec
from pykvm.templates.start import has_template, template
from pykvm.templates.store import TemplateError

_OF_THE_MACHINE = ("disks", "memory", "cpus", "initrd", "append")


class _Made(NamedTuple):
    spec: Spec
    snapshot: Snapshot | GuestError


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
                during = "the start of the guest for the tests"
                found = GuestDied(death.outcome, death.console, during)
            except GuestError as error:
                found = error
            # After an error too: the next test need not wait for the same boot.
            self._made.append(_Made(spec, found))
        if isinstance(found, GuestError):
            raise found.with_traceback(None)
        return found

    def _make(self, spec: Spec) -> Snapshot:
        if not spec.has_agent:
            raise UsageError(
                "a kernel alone has no agent, so no snapshot can be taken when it has booted",
                "use the fixture pykvm_machine, or name a guest, too",
            )
        with self._places.take(spec.memory):
            _make_template(spec)
            with _booted(spec) as guest:
                prepare(guest, spec)
                return guest.snapshot()

    def close(self) -> None:
        """Free them."""
        with ExitStack() as stack:
            for _, snapshot in self._made:
                if isinstance(snapshot, Snapshot):
                    stack.callback(snapshot.close)
        self._made.clear()


def _booted(spec: Spec) -> Guest:
    """A guest of ``spec``, ready for commands."""
    with warnings.catch_warnings():
        # Tests that turn warnings into errors need no template to pass.
        warnings.filterwarnings("always", "booting without a template", RuntimeWarning)
        return boot(**spec.options)


def _make_template(spec: Spec) -> None:
    """Boot the guest of ``spec`` for its template, unless there is one.

    GuestDied if its kernel panics, and GuestTimeout if it hangs: so would a second boot. For any
    other reason :func:`boot` does without a template, and tells why.
    """
    options = dict(spec.options)
    chosen = {name: options[name] for name in _OF_THE_MACHINE if name in options}
    config = configuration(options.get("guest"), options.get("kernel"), chosen)
    booted: list[Machine] = []
    with suppress(TemplateError):
        if not options.get("cold") and has_template(config):
            template(config, timeout=options.get("timeout"), watch=booted.append)
    for machine in booted:
        outcome = machine.outcome
        if outcome is None or outcome.kind not in (OutcomeKind.PANIC, OutcomeKind.TIMEOUT):
            continue
        console = last_lines(machine.console_output.decode("utf-8", "replace"))
        if outcome.kind is OutcomeKind.PANIC:
            raise GuestDied(outcome, console, "its boot")
        raise GuestTimeout(
            f"the guest's agent has not answered: {outcome.reason}",
            console,
            hint="give a longer timeout if that is not enough; append='loglevel=7' shows the boot",
        )


def prepare(guest: Guest, spec: Spec) -> None:
    """Prepare ``guest`` as ``spec`` says."""
    if isinstance(spec.prepare, str):
        guest.run(spec.prepare)
    elif spec.prepare is not None:
        spec.prepare(guest)
