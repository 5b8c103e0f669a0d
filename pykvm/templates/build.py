"""Boots a guest once, without disks, and keeps it as its template."""

import os
from collections.abc import Callable
from functools import partial

from pykvm.errors import reason_of
from pykvm.lean.records import replace
from pykvm.lean.typing_names import Final
from pykvm.machine.command import BootFailed, save_booted
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import OutcomeKind
from pykvm.snapshot.fields import SnapshotError
from pykvm.templates import about
from pykvm.templates.key import template_key
from pykvm.templates.store import Store, TemplateError
from pykvm.templates.upkeep import building, held, prepare, tidy

BOOT_SECONDS: Final = 120.0
"""The longest boot, unless the caller gives a limit."""
_ROOM: Final = 32 << 20
"""Bytes that have to be free; a booted guest writes a part of its memory."""
Boot = Callable[..., None]
"""As :func:`save_booted`."""
_BY_THE_USER: Final = (OutcomeKind.SIGNALLED, OutcomeKind.QUIT)


def build(
    store: Store,
    config: MachineConfig,
    key: str,
    *,
    timeout: float | None,
    progress: Callable[[str], None],
    watch: Callable[[Machine], object],
    boot: Boot | None = None,
) -> str:
    """The folder of the new template ``key``; or of the one that a process beside this one made.

    ``boot`` boots the guest and saves it in a folder; None: :func:`save_booted`.
    TemplateError if there can be none. UsageError and HostError if a machine of ``config`` cannot
    be built. BootFailed if the user ended the boot.
    """
    seconds = BOOT_SECONDS if timeout is None else timeout

    def waiting() -> None:
        progress("waiting for a different pykvm, which boots this guest for the first time")

    try:
        prepare(store, _ROOM)
        with held(store, key, seconds, waiting) as mine:
            if not mine:
                raise TemplateError(
                    f"a different pykvm has been making it for {seconds:g} seconds",
                    "look whether it hangs",
                )
            if found := store.find(key):
                return found
            # A mistake in the caller's own options shows now, not after the boot.
            Machine(replace(config, trace=None)).close()
            tidy(store, store.limit)
            progress("first start of this guest on this host: booting it once")
            place = os.path.join(building(store, key), "snapshot")
            _boot(store, config, key, place, seconds, partial(boot or save_booted, watch=watch))
            return _keep(store, config, key, place)
    except OSError as error:
        raise _unusable(store, error) from None


def _boot(
    store: Store,
    config: MachineConfig,
    key: str,
    place: str,
    seconds: float,
    boot: Callable[..., None],
) -> None:
    """Boot the guest of ``config`` alone, and save it as ``place``. TemplateError."""
    try:
        boot(replace(config, disks=(), trace=None, console_size=None), place, timeout=seconds)
    except BootFailed as error:
        if error.outcome.kind in _BY_THE_USER:
            raise
        reason = f"alone, without disks, {error.message}"
        # A caller in haste says nothing about the guest.
        if error.outcome.kind is not OutcomeKind.TIMEOUT or seconds >= BOOT_SECONDS:
            store.failed(key, reason)
        raise TemplateError(reason) from None
    except SnapshotError as error:
        raise TemplateError(error.message, error.hint) from None


def _keep(store: Store, config: MachineConfig, key: str, place: str) -> str:
    """The folder of the template that is complete in ``place``. TemplateError."""
    if template_key(config) != key:
        raise TemplateError("the guest's files have changed while it booted")
    about.write(place, config)
    os.rename(place, store.path(key))
    tidy(store, store.limit)
    if not (found := store.find(key)):
        reason = f"it is larger than the limit, {store.limit >> 20} MiB"
        store.failed(key, reason, too_large=True)
        raise TemplateError(reason, "raise PYKVM_TEMPLATE_LIMIT")
    return found


def _unusable(store: Store, error: OSError) -> TemplateError:
    return TemplateError(
        f"none can be kept in {store.folder}: {reason_of(error)}",
        "set PYKVM_CACHE to a folder that can be written",
    )
