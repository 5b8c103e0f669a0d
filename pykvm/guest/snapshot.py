"""The state of a guest at one moment, and the guests that begin there."""

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pykvm.errors import PykvmError
from pykvm.forms import path, refused, whole
from pykvm.guest.start import Start, configuration
from pykvm.guest.waiting import Limit, seconds
from pykvm.lean.records import replace

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.guest.guest import Guest
    from pykvm.machine.snapshot import MachineSnapshot
    from pykvm.trace.log import TraceLog
    from pykvm.trace.options import TraceOptions

_MOST_FORKS = 10_000


class Snapshot:
    """The state of a guest at one moment: CPUs, memory, devices, and disks that can go back.

    :meth:`Guest.snapshot` takes it, and it stays in memory until :meth:`save` writes it. Any
    number of guests can begin from it at once; they share the memory and the disks' content that
    they do not change. A context manager, whose end frees it; the guests that began from it run
    on. The loss of the last reference frees it too. ``saved`` is the machine's part of it.
    """

    def __init__(self, saved: "MachineSnapshot", start: Start, limit: Limit) -> None:
        """Programs call :meth:`Guest.snapshot` or :meth:`open`."""
        self.saved = saved
        # Machines cannot write one trace together.
        self._start = replace(start, config=replace(start.config, trace=None))
        self._limit = limit
        weakref.finalize(self, saved.close).atexit = False

    @classmethod
    def open(
        cls,
        folder: "Path | str",
        guest: str | None = None,
        *,
        disks: "Sequence[DiskConfig | Path | str] | None" = None,
        kernel: "Path | str | None" = None,
        initrd: "Path | str | bytes | None" = None,
        append: str = "",
        timeout: float = 60.0,
    ) -> Self:
        """Open the folder that :meth:`save` wrote. See :func:`boot` for the other arguments.

        They are those of the guest that was saved. ``disks`` are the disks that it had, in
        their order, and perhaps more, which are new to it. None: the blank ones that it had;
        UsageError if it had disks with images. SnapshotError.
        """
        from pykvm.machine.snapshot import MachineSnapshot

        limit = Limit(seconds("timeout", timeout))
        saved = MachineSnapshot.open(path("folder", folder))
        try:
            if disks is None:
                disks = saved.own_disks()
            options: dict[str, Any] = {"disks": disks, "initrd": initrd, "append": append}
            options |= {"memory": saved.memory, "cpus": saved.cpus}
            return cls(saved, Start(configuration(guest, kernel, options)), limit)
        except BaseException:
            saved.close()
            raise

    def __repr__(self) -> str:
        return f"<Snapshot {self.saved.id}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def manifest(self) -> dict[str, Any]:
        """The facts about it, as in its folder's manifest.json."""
        return dict(self.saved.manifest)

    def problem(self) -> str | None:
        """Why no guest can begin from it on this host now, as a sentence; None if one can."""
        try:
            self.check_open()
            self._start.fork().machine(self.saved, Limit(math.inf).deadline(None)).close()
        except PykvmError as error:
            return str(error)
        return None

    def save(self, folder: "Path | str") -> None:
        """Write it as the new folder ``folder``, complete or not at all. SnapshotError."""
        self.check_open()
        self.saved.write(folder)

    def verify(self) -> None:
        """Read all of it, and compare its checksums. SnapshotError if it is damaged."""
        self.check_open()
        self.saved.verify()

    def restore(
        self,
        *,
        timeout: float | None = None,
        entropy: str | None = None,
        clock: float | None = None,
        trace: "TraceOptions | TraceLog | Path | str | None" = None,
    ) -> "Guest":
        """A guest that begins here, and can run commands. See :func:`boot` for the arguments.

        None is as for the guest that was saved, but for ``trace``: no trace. Commands that ran at
        the moment of the snapshot run on, and their output is lost. UsageError if a disk cannot
        go back, SnapshotError.
        """
        return self._begin(1, timeout, entropy, clock, trace)[0]

    def fork(
        self,
        count: int,
        *,
        timeout: float | None = None,
        entropy: str | None = None,
        clock: float | None = None,
    ) -> "Guests":
        """A list of ``count`` guests, as :meth:`restore` makes them. Each is isolated.

        They differ in their random numbers, unless ``entropy`` is ``"same"``.
        """
        if not 1 <= whole("count", count) <= _MOST_FORKS:
            raise refused("count", count, f"give a number of guests from 1 to {_MOST_FORKS}")
        return self._begin(count, timeout, entropy, clock)

    def _begin(
        self,
        count: int,
        timeout: float | None,
        entropy: str | None,
        clock: float | None,
        trace: "TraceOptions | TraceLog | Path | str | None" = None,
    ) -> "Guests":
        """``count`` guests that begin here."""
        from pykvm.guest.guest import Guest

        self.check_open()
        limit = self._limit.seconds if timeout is None else seconds("timeout", timeout)
        start = self._start
        if entropy is not None:
            start = replace(start, entropy=entropy)
        if clock is not None:
            start = replace(start, clock=clock)
        if trace is not None:
            start = replace(start, config=replace(start.config, trace=trace))
        guests = Guests()
        try:
            # None runs while the others are made, which takes much longer on a busy host.
            for _ in range(count):
                guests.append(Guest(start.fork(), Limit(limit), self))
            for guest in guests:
                guest._run()
            for guest in guests:
                guest._wait_ready(guest._limit.deadline(None))
        except BaseException:
            guests.close()
            raise
        return guests

    def _fits(self, start: Start) -> bool:
        """True if a guest with the disks of ``start`` can be put back in place."""
        return _images(start) == _images(self._start)

    def _start_of(self, start: Start) -> Start:
        """``start`` with the disks of this snapshot."""
        return replace(start, config=self._start.fork().config)

    def close(self) -> None:
        """Free it. May be repeated. The guests that began from it run on, and cannot be reset."""
        self.saved.close()

    def check_open(self) -> None:
        """UsageError after :meth:`close`."""
        self.saved.check_open()


def _images(start: Start) -> "list[tuple[Path | str, int]]":
    return [(disk.path, disk.blank) for disk in start.config.disks]


class Guests(list["Guest"]):
    """A list of guests. A context manager, whose end closes all of them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every guest. May be repeated."""
        for guest in self:
            guest._session.let_go()
        for guest in self:
            guest.close()
