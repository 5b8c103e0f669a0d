"""A guest that runs: its commands, files, console and disks, and its end."""

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self, overload

from pykvm.agent.client import AgentClient
from pykvm.errors import UsageError
from pykvm.forms import refused
from pykvm.guest import transfers
from pykvm.guest.console import Console
from pykvm.guest.process import Process
from pykvm.guest.request import run_request
from pykvm.guest.result import Command, Result
from pykvm.guest.running import Running
from pykvm.guest.session import Session
from pykvm.guest.snapshot import Snapshot
from pykvm.guest.start import Start, disk_of
from pykvm.guest.waiting import Deadline, Limit, seconds
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.hooks import IoError
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.machine.disks import Disk


class Guest:
    """A guest that runs, made by :func:`boot` or from a :class:`Snapshot`. A context manager.

    The end of the ``with`` block cuts the guest's power, like :meth:`close`. The end of the
    interpreter and the loss of the last reference do so too. Any thread may call any method.

    ``timeout`` arguments are seconds. None is the guest's own limit (:attr:`timeout`), and
    ``math.inf`` is none. A call that waits longer raises GuestTimeout, and the guest runs on.
    When the guest's run ends, every call that waits raises GuestDied at once. ``console`` is the
    guest's console. ``on_command``, a function that may be set, gets the Process of each command
    that :meth:`run` or :meth:`popen` starts. ``on_reset``, a function without arguments that may
    be set, is called before :meth:`reset` drops the console's text and the outcome.
    """

    def __init__(self, start: Start, limit: Limit, origin: Snapshot | None = None) -> None:
        """Begin as ``start`` says, at ``origin`` if given. Programs call :func:`boot`."""
        self._start = start
        self._limit = limit
        self._lock = threading.RLock()
        self._session: Session
        self._back: Snapshot | None = origin
        self.console = Console(limit)
        self.on_command: Callable[[Process], object] = lambda process: None
        self.on_reset: Callable[[], object] = lambda: None
        self._begin(origin)

    def __repr__(self) -> str:
        return f"<Guest: {self.machine.status.value}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def timeout(self) -> float:
        """The limit of each wait that has no ``timeout`` of its own, in seconds. Can be set."""
        return self._limit.seconds

    @timeout.setter
    def timeout(self, limit: float) -> None:
        self._limit.seconds = seconds("timeout", limit)

    @property
    def machine(self) -> Machine:
        """The machine of the guest, for everything that this class does not offer.

        A reset of a guest that has ended makes a new one.
        """
        return self._session.machine

    @property
    def disks(self) -> "list[Disk]":
        """The disks: /dev/vda, /dev/vdb, …, unless some were added or removed meanwhile."""
        return list(self.machine.disks)

    @property
    def outcome(self) -> Outcome | None:
        """The way in which the guest's run ended; None while it runs."""
        return self._session.outcome

    # -- commands ---------------------------------------------------------------

    def run(
        self,
        command: Command,
        *,
        input: bytes = b"",
        check: bool = True,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Result:
        """Run ``command`` to its end: a line for the guest's shell, or a list of arguments.

        The command gets the bytes of ``input`` as its standard input, the variables of ``env``
        besides its usual ones, and the working directory ``cwd``. CommandFailed if its status is
        not 0, unless ``check`` is False. After ``timeout`` seconds, and if an exception such as
        KeyboardInterrupt ends the wait, the command is killed with its children, and the guest
        runs on. GuestError if the command cannot start, or writes more than 64 MiB.

        The end of a command writes no caches of the guest back, so that a power cut afterwards
        loses what it would lose. Say ``sync`` in the command, or :meth:`power_off`.
        """
        deadline = self._limit.deadline(timeout)
        if not isinstance(input, bytes):
            raise refused("input", input, "give bytes")
        with self._popen(command, env, cwd, stdin=bool(input), unlimited=True) as process:
            if input:
                process.stdin._feed(input, deadline)
            return process._finish(deadline, check)

    def popen(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start ``command`` as :meth:`run` does, and return while it runs. Many may run at once."""
        return self._popen(command, env, cwd, stdin=True, unlimited=False)

    def _popen(
        self,
        command: Command,
        env: Mapping[str, str] | None,
        cwd: str | None,
        *,
        stdin: bool,
        unlimited: bool,
    ) -> Process:
        request = run_request(command, env, cwd, stdin=stdin, manual_credit=not unlimited)
        session, client = self._agent("it cannot run commands")
        running = Running(unlimited)
        process = Process(session, command, running, self)
        running.attach(client.run(request, running))
        self.on_command(process)
        return process

    # -- files --------------------------------------------------------------------

    def push(
        self,
        source: "Path | str | bytes",
        path: str,
        mode: int | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Write a file in the guest, at the absolute ``path``; it appears there whole, or not.

        ``source`` is a file of the host, or the content as bytes. ``mode`` is the permissions;
        None: those of the host's file, and 0o644 for bytes. UsageError if the host's file cannot
        be read, GuestError if the guest cannot write it, GuestTimeout.
        """
        deadline = self._limit.deadline(timeout)
        transfers.push(*self._agent("it takes no files"), source, path, mode, deadline)

    @overload
    def pull(self, path: str, to: None = None, *, timeout: float | None = None) -> bytes: ...

    @overload
    def pull(self, path: str, to: "Path | str", *, timeout: float | None = None) -> None: ...

    def pull(
        self, path: str, to: "Path | str | None" = None, *, timeout: float | None = None
    ) -> bytes | None:
        """Return the content of the guest's file at the absolute ``path``.

        With ``to``, write it to this file of the host instead, with the same permissions; an
        earlier file is replaced when all has arrived. GuestError if the guest cannot read the
        file, UsageError if the host cannot write it, GuestTimeout.
        """
        deadline = self._limit.deadline(timeout)
        session, client = self._agent("it gives no files")
        if to is None:
            return transfers.pull(session, client, path, deadline)
        transfers.pull_file(session, client, path, to, deadline)
        return None

    def dmesg(self, *, timeout: float | None = None) -> str:
        """Return the messages of the guest's kernel, from its log. GuestTimeout."""
        deadline = self._limit.deadline(timeout)
        return transfers.dmesg(*self._agent("it does not tell its messages"), deadline)

    # -- the run ----------------------------------------------------------------

    def pause(self) -> None:
        """Stop the guest: on return, no CPU runs and no disk does anything. GuestTimeout."""
        self._usable().pause()

    def resume(self) -> None:
        """Let the guest run on after :meth:`pause`, or after an I/O error that stopped it."""
        self._usable().resume()

    def wait_stopped(self, timeout: float | None = None) -> "IoError":
        """Wait until an I/O error of a disk has stopped the guest; return the error.

        The policy of the disk (``werror`` and ``rerror`` of DiskConfig) says which errors do that.
        :meth:`resume` tries the request again. GuestDied, GuestTimeout.
        """
        return self._usable().wait_stopped(self._limit.deadline(timeout)).error

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the guest's run ends; return the way. GuestTimeout."""
        return self._usable().wait_end(self._limit.deadline(timeout))

    def power_off(self, status: int = 0, timeout: float | None = None) -> Outcome:
        """Have the guest write back its caches, unmount and power off; wait for it. GuestTimeout.

        ``status`` is the outcome's.
        """
        deadline = self._limit.deadline(timeout)
        if not isinstance(status, int) or not 0 <= status <= 255:
            raise refused("status", status, "give a number from 0 to 255")
        session, client = self._agent("it cannot be asked to power off")
        client.power_off(status)
        return session.wait_end(deadline)

    def close(self) -> None:
        """Cut the guest's power, and free everything. May be repeated.

        The guest gets no chance to write back its caches: :meth:`power_off` gives it one.
        """
        self._session.let_go()  # at once, also while a reset waits for the guest
        with self._lock:
            self._session.close()

    # -- disks -------------------------------------------------------------------

    def add_disk(self, disk: "DiskConfig | Path | str", *, timeout: float | None = None) -> "Disk":
        """Plug a disk in while the guest runs; return it when the guest's kernel has found it.

        ``disk`` is an image file, a DiskConfig, or the size of a blank disk, as for :func:`boot`.
        A guest without an agent has to look for it itself (a scan of its PCI bus). GuestTimeout.
        """
        deadline = self._limit.deadline(timeout)
        session = self._usable()
        with self._lock:
            added = session.machine.add_disk(disk_of(disk))
        if session.client is not None:
            transfers.rescan(session, session.client, deadline)
        return added

    def remove_disk(self, disk: "Disk", *, timeout: float | None = None) -> None:
        """Have the guest let go of ``disk``, and unplug it. GuestError, GuestTimeout.

        Unmount its filesystems before. A guest without an agent has to let go of it itself.
        """
        session = self._usable()
        if session.client is not None:
            remove = f"echo 1 > /sys/bus/pci/devices/0000:00:{disk.number:02x}.0/remove"
            self.run(remove, timeout=timeout)
        with self._lock, session.in_time():
            session.machine.remove_disk(disk)

    # -- snapshots ----------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Keep the guest's state at this moment; the guest waits for some milliseconds.

        Before, the agent gets up to two seconds to prepare for commands, which are then quick in
        the guests that begin here. Commands may run meanwhile: they go on here, and in those
        guests nobody hears of them. With a disk whose writes go straight to its image the guest
        cannot go back, and guests can begin from the snapshot only while nobody has written to
        the image since. Give it ``readonly=True`` or ``snapshot=True``, or use a blank disk.
        """
        with self._lock:
            session = self._usable()
            if session.client is not None:
                transfers.settle(session, session.client)
            saved = session.snapshot()
            start = self._start.with_disks(session.machine.disks)
            self._back = Snapshot(saved, start, Limit(self._limit.seconds))
            return self._back

    def reset(self, snapshot: Snapshot | None = None, *, timeout: float | None = None) -> None:
        """Put the guest back to ``snapshot``; it then runs, and can run commands.

        None: the snapshot that was taken last, or that the guest began from, or else its start.
        Everything goes back: memory, disks, and a guest that has ended or is paused. Calls that
        wait meanwhile, and commands that run, fail with GuestError. The console's text begins
        anew. UsageError if a disk cannot go back; the guest then runs on. GuestTimeout.
        """
        deadline = self._limit.deadline(timeout)
        if snapshot is not None and not isinstance(snapshot, Snapshot):
            raise refused("snapshot", snapshot, "give a Snapshot, or None for the last one")
        with self._lock:
            session = self._usable()
            back = snapshot or self._back
            if back is not None:
                back.check_open()
            start = self._start.with_disks(session.machine.disks)
            fits = back is not None and back._fits(start)
            self.on_reset()
            if back is not None and fits and session.machine.outcome is None:
                session.put_back(back.saved, *self._start.awakening())
            else:
                session.close()
                if back is not None and not fits:
                    self._start = back._start_of(self._start)
                self._begin(back)
                self._run()
            self._wait_ready(deadline)

    # -- inside -----------------------------------------------------------------

    def _begin(self, origin: Snapshot | None) -> None:
        """Make a new machine; :meth:`_run` and :meth:`_wait_ready` come next."""
        machine = self._start.machine(origin.saved if origin else None, self._limit.deadline(None))
        try:
            self._session = session = Session(machine, self.console, self._limit)
        except BaseException:
            machine.close()
            raise
        weakref.finalize(self, session.let_go).atexit = False
        for notice in machine.notices:
            if notice.startswith("booting without a template"):
                warnings.warn(notice, RuntimeWarning, stacklevel=4)

    def _run(self) -> None:
        """Let the new machine run."""
        self._session.start(*self._start.awakening())

    def _wait_ready(self, deadline: Deadline) -> None:
        """Wait until the guest runs commands, if it has an agent; else close it."""
        session, start = self._session, self._start
        try:
            session.wait_ready(deadline)
            if start.clock is not None and not session.woken:
                session.wake_again(*start.awakening())
                session.wait_ready(deadline)
        except BaseException:
            session.close()
            raise

    def _usable(self) -> Session:
        self._session.check_process()
        return self._session

    def _agent(self, lack: str) -> "tuple[Session, AgentClient]":
        session = self._usable()
        client = session.client
        if client is None:
            raise UsageError(
                f"this guest has no agent, so {lack}",
                "use its console, or boot a guest with pykvm's agent: pykvm.boot()",
            )
        if session.outcome is not None:
            raise session.died("")
        return session, client
