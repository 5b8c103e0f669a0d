"""Machines that do not boot: they start from a template, or from the folder of ``--snapshot``.

Imported only for runs with ``--exec``.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from pykvm.cli.process import signals_go_to
from pykvm.cli.quick_options import Options
from pykvm.cli.say import STDERR, say
from pykvm.errors import UsageError, shown
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Self
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome
from pykvm.machine.timings import Timings
from pykvm.snapshot.fields import SnapshotError
from pykvm.templates.start import machine

if TYPE_CHECKING:
    from pykvm.cli.boot.waiting_line import WaitingLine


def prepared_machine(
    config: MachineConfig,
    options: Options,
    timings: Timings,
    timeout: float | None,
    own_process: bool,
) -> Machine:
    """The machine of a run with ``--snapshot`` or ``--exec``. The first such run boots it once."""
    if options.snapshot is not None:
        return _from_snapshot(config, options, timings, timeout, own_process)
    if _wants_boot(options):
        return Machine(config, timings=timings)
    with _Preparation() as preparation:
        return machine(
            config,
            timeout=timeout,
            progress=preparation.show,
            watch=preparation.watch,
            timings=timings,
            boot=partial(_boot, options.sandbox, own_process),
        )


def _boot(sandbox: str, own_process: bool, *arguments: Any, **named: Any) -> None:
    """Boot a guest for its template or snapshot, confined as the run will be."""
    boot: Callable[..., None]
    if own_process and sandbox != "off":
        from pykvm.cli.boot.confined_boot import confined_boot

        boot = confined_boot(insist=sandbox == "on")
    else:
        from pykvm.machine.command import save_booted

        boot = save_booted
    boot(*arguments, **named)


def _wants_boot(options: Options) -> bool:
    """True if a start from a template would not be the run that ``options`` ask for."""
    # The log has the boot, and memory that begins as a file has no large pages.
    return bool(options.console_log) or "thp=on" in (options.memory or "").split(",")


class _Preparation:
    """Shows the user what takes long before the run, and has signals end it. A context."""

    def __init__(self) -> None:
        self._line: WaitingLine | None = None
        self._signals = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._signals.close()
        self._end_line()

    def show(self, text: str) -> None:
        """Show ``text`` and a count of seconds, if standard error is a terminal."""
        self._end_line()
        if os.isatty(STDERR):
            from pykvm.cli.boot.waiting_line import WaitingLine

            self._line = line = WaitingLine(text)
            line.start()

    def watch(self, machine: Machine) -> None:
        """From now on signals end ``machine``."""
        finish = signals_go_to(lambda number: machine.finish(Outcome.signalled(number)))
        self._signals.enter_context(finish)

    def _end_line(self) -> None:
        # No thread may run when the sandbox closes.
        if self._line:
            self._line.join()
        self._line = None


def _from_snapshot(
    config: MachineConfig,
    options: Options,
    timings: Timings,
    timeout: float | None,
    own_process: bool,
) -> Machine:
    folder: str = options.snapshot
    if options.command is None:
        raise UsageError("--snapshot needs --exec", "give the command to run: --exec CMD")
    if options.cold:
        raise UsageError("--cold and --snapshot exclude each other", "leave out one of them")
    if not os.path.lexists(folder):
        _save_booted(config, folder, partial(_boot, options.sandbox, own_process), timeout)
    return Machine(config, timings=timings, snapshot=folder)


def _save_booted(
    config: MachineConfig, folder: str, boot: Callable[..., None], timeout: float | None
) -> None:
    from pathlib import Path

    from pykvm.snapshot.writing import adopt, check_place, unfinished

    def begin(machine: Machine) -> None:
        preparation.watch(machine)
        say(f"booting the guest once for the snapshot {shown(folder)} …")

    place = Path(folder)
    try:
        check_place(place)
        with _Preparation() as preparation, unfinished(place) as aside:
            # In a folder of its own, the only one that the process which boots can write.
            boot(config, str(aside / "booted"), timeout=timeout, watch=begin)
            adopt(aside / "booted", place)
    except SnapshotError:
        # A run beside this one may have made it meanwhile.
        if not os.path.lexists(folder):
            raise
