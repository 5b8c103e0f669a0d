"""A machine that starts from its template: a guest in milliseconds instead of seconds."""

import errno
from collections.abc import Callable
from functools import partial

from pykvm.errors import UsageError, reason_of
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.timings import Timings
from pykvm.snapshot.fields import SnapshotError
from pykvm.templates.key import template_key
from pykvm.templates.store import TemplateError, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.templates.build import Boot

Progress = Callable[[str], None]
Watch = Callable[[Machine], object]


def _silent(text: str) -> None:
    """No progress is shown."""


def _unwatched(machine: Machine) -> None:
    """Nobody watches the machine that boots."""


def machine(
    config: MachineConfig,
    *,
    timeout: float | None = None,
    progress: Progress = _silent,
    watch: Watch = _unwatched,
    timings: Timings | None = None,
    boot: "Boot | None" = None,
) -> Machine:
    """A machine of ``config`` that starts from its template, or else one that boots.

    ``Machine.restored`` tells which of them. If a user should know why there is no template,
    ``Machine.notices`` has the reason. A machine without an agent or with shared memory boots
    anyway. For the rest see :func:`template`.
    """
    notice = ""
    if has_template(config):
        find = partial(_template, config, timeout, progress, watch, boot)
        try:
            return _from_template(config, find, timings)
        except TemplateError as error:
            notice = "" if error.known else f"booting without a template: {error}"
    made = Machine(config, timings=timings)
    if notice:
        made.notices.append(notice)
    return made


def has_template(config: MachineConfig) -> bool:
    """False if a machine of ``config`` cannot start from a template."""
    return config.guest is not None and config.agent and not config.shared_memory


def template(
    config: MachineConfig,
    *,
    timeout: float | None = None,
    progress: Progress = _silent,
    watch: Watch = _unwatched,
    boot: "Boot | None" = None,
) -> "Path":
    """The template of ``config``: a folder, for ``Machine(config, snapshot=folder)``.

    If there is none yet, the guest boots once, without the disks and the trace of ``config``, at
    most ``timeout`` seconds (None: two minutes). ``progress`` gets a sentence before each step
    that takes long. ``watch`` gets the machine that boots, for instance to finish it when a signal
    arrives; then BootFailed has its outcome. ``boot`` replaces :func:`save_booted`.

    A folder may be removed at any time, when the templates take too much space. Machines that were
    made from it go on. TemplateError: there is no template, and the guest has to boot. UsageError
    and HostError as from ``Machine(config)``.
    """
    from pathlib import Path

    return Path(_template(config, timeout, progress, watch, boot))


def _template(
    config: MachineConfig,
    timeout: float | None,
    progress: Progress,
    watch: Watch,
    boot: "Boot | None",
) -> str:
    if not has_template(config):
        raise UsageError(
            "this machine has no template",
            "a template needs guest='guest', agent=True and memory that is not shared",
        )
    store = open_store()
    try:
        key = template_key(config)
    except OSError as error:
        raise TemplateError(f"this host cannot be told from others: {reason_of(error)}") from None
    if found := store.find(key):
        return found
    if reason := store.failure(key):
        raise TemplateError(reason, known=True)
    from pykvm.templates.build import build

    return build(store, config, key, timeout=timeout, progress=progress, watch=watch, boot=boot)


def _from_template(
    config: MachineConfig, find: Callable[[], str], timings: Timings | None
) -> Machine:
    timings = timings or Timings()
    folder = find()
    timings.mark("template found")
    try:
        return Machine(config, timings=timings, snapshot=folder)
    except SnapshotError as error:
        if _lacks(error):
            raise TemplateError(error.message, error.hint) from None
        _discard(folder)
    # It was damaged, or removed this moment.
    folder = find()
    try:
        return Machine(config, timings=timings, snapshot=folder)
    except SnapshotError as error:
        raise TemplateError(f"a new one cannot be used: {error.message}") from None


def _lacks(error: SnapshotError) -> bool:
    """True if the host or this process refused, which says nothing about the template."""
    cause = error.__context__
    return isinstance(cause, OSError) and cause.errno not in (errno.ENOENT, errno.ENOTDIR)


def _discard(folder: str) -> None:
    import os

    from pykvm.templates.upkeep import remove

    remove(open_store(), os.path.basename(folder))
