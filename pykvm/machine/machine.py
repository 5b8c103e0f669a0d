"""A virtual machine from its configuration to the end of its run."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from threading import Lock

from pykvm.forms import refused
from pykvm.kvm.pci_services import KvmPciServices
from pykvm.lean.records import replace
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Self
from pykvm.machine.board import Board
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.create import Hardware, check_disks, memory_sizes, open_snapshot
from pykvm.machine.end import EndOfRun
from pykvm.machine.events import Announcer, GuestPanicked, Listener, Shutdown
from pykvm.machine.exits import ExitHandler
from pykvm.machine.halt import HaltPoll
from pykvm.machine.mailbox import Mailbox
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_state import RunControl, RunState
from pykvm.machine.timings import Timings
from pykvm.machine.tracing import open_trace
from pykvm.machine.vcpu_group import STOP_SECONDS, VcpuGroup

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.machine.disk_reports import DiskReports
    from pykvm.machine.disks import Disk
    from pykvm.machine.snapshot import MachineSnapshot

CONSOLE_BYTES = 1 << 20


class Machine:
    """Owns a VM: its memory, vCPUs, devices and threads. A context manager.

    Building it opens the files and loads the kernel, and starts no thread.
    :meth:`start` lets the guest run, :meth:`wait` waits for its end, and
    :meth:`close` (or leaving the ``with`` block) stops and frees everything.
    Any thread may call these, and several machines may run in one process.

    ``console`` and ``channel`` are sinks: functions that get the bytes which
    the guest sends over its first and second UART, in the vCPU's thread. They
    may be set before the start. The default ``console`` appends to
    ``console_output``, which keeps at least the last MiB; the default
    ``channel`` drops everything. An exception in a sink ends the run like any
    other bug. A sink that blocks delays the guest and nothing else.
    ``on_end`` is called, perhaps more than once, when the run is over, before
    the vCPU threads are joined: a sink that blocks must return then.

    ``config`` is the configuration, and ``ram`` is the guest's memory. ``mailbox``
    is the part of it in which the guest's agent speaks with the host, or None.
    ``disks`` are its disks, in the order of the configuration. ``notices`` are
    sentences that the user should see. ``trace`` is the trace, or None.

    If a disk's policy stops the guest for an I/O error, and there is no
    listener (:meth:`listen`) that could resume it, the run ends with ERROR.

    UsageError and HostError tell why the configuration, or this host, cannot
    be used.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        console: Callable[[bytes], None] | None = None,
        timings: Timings | None = None,
        snapshot: "MachineSnapshot | Path | str | None" = None,
    ) -> None:
        """``snapshot``: one of :meth:`snapshot`, or its folder. The machine begins as it was then.

        ``config`` is the configuration of the machine that was saved, with other CPU affinity
        and trace if you like. Further disks are new to the guest, which finds them when it
        scans its PCI bus.
        """
        if not isinstance(config, MachineConfig):
            raise refused("config", config, "give a MachineConfig")
        self.config = config
        self.timings = timings or Timings()
        self.console_output = bytearray()
        self.console: Callable[[bytes], None] = console or self._keep
        self.channel: Callable[[bytes], None] = lambda data: None
        self.mailbox: Mailbox | None = None
        self.on_end: Callable[[], None] = lambda: None
        self.notices: list[str] = []
        self.disks: list[Disk] = []
        self._end = EndOfRun()
        self._errors: list[BaseException] = []
        self._vcpus = VcpuGroup(self._failed)
        self._started = False
        self._snapshots = Lock()
        self._announcer = Announcer(self._failed)
        self._control = RunControl(
            self._vcpus.threads,
            self.disks,
            self._announcer.announce,
            self._end.__bool__,
            self._failed,
        )
        self._begins_failed = False
        self.restored = snapshot is not None
        with ExitStack() as stack:
            self._build(stack, config, open_snapshot(stack, snapshot))
            self._owned = stack.pop_all()

    def __repr__(self) -> str:
        return f"<Machine: {self.status.value}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _build(
        self, stack: ExitStack, config: MachineConfig, saved: "MachineSnapshot | None"
    ) -> None:
        self.trace = open_trace(stack, config)
        self.hardware = hardware = Hardware(stack, config, self.timings.mark, saved)
        guest = hardware.guest
        if guest.notice:
            self.notices.append(guest.notice)
        self.traits = hardware.traits
        self.memory = hardware.memory
        self.ram = hardware.memory.ram
        self._services = services = KvmPciServices(hardware.vm)
        self.board = Board(
            services,
            hardware.vm.irq_line,
            memory_sizes(hardware.memory.regions),
            console=self._console_output,
            channel=self._channel_output,
            finish=self.finish,
            bell=self._bell_rung if guest.reserved else None,
            # The guest would echo input that arrives before it turns echo off.
            console_waits=guest.is_bundle and config.console is ConsoleMode.PIPE,
        )
        if guest.reserved:
            address = hardware.memory.regions[0].end - guest.reserved
            self.mailbox = Mailbox(self.ram, address)
        self.board.console.on_failure = self.board.channel.on_failure = self._failed
        stack.callback(self.board.close)
        old_disks = saved.disks if saved else 0
        if saved and old_disks and not config.disks:
            self.config = config = replace(config, disks=saved.own_disks())
            check_disks(config.disks)
        for disk in config.disks[:old_disks]:
            self._add_disk(disk, services)
        if saved:
            saved.check(hardware)
            saved.load(self, new=True)
            self.description = saved.description
            self._begins_failed = saved.failed
        for disk in config.disks[old_disks:]:
            self._add_disk(disk, services)
        self.timings.mark("machine built")
        if not saved:
            self.description, notice = hardware.load(self.timings.mark)
            if notice:
                self.notices.append(notice)
        assistant = hardware.assist.handle if hardware.assist else None
        for vcpu in hardware.vcpus:
            handler = ExitHandler(
                vcpu,
                self.board.ports,
                self.board.mmio,
                self.finish,
                self._end.__bool__,
                assistant,
            )
            self._vcpus.add(vcpu, handler, config.cpu_affinity)

    def _add_disk(self, disk: "DiskConfig", services: KvmPciServices) -> None:
        from pykvm.machine.plugging import plug

        plug(self, disk, services)

    def disk_reports(self, name: str) -> "DiskReports":
        """The receiver of the reports of a disk called ``name``."""
        from pykvm.machine.disk_reports import DiskReports

        return DiskReports(
            name, self._announcer, self._control, self._end, self.finish, self._failed
        )

    # The sinks may be replaced after the board is built.

    def _console_output(self, data: bytes) -> None:
        self.console(data)

    def _channel_output(self, data: bytes) -> None:
        self.channel(data)

    def hold_mailbox(self, *, put_back: bool = False) -> AbstractContextManager[None]:
        """A context in which no client of the agent writes to RAM: see Mailbox.held."""
        return self.mailbox.held(put_back=put_back) if self.mailbox is not None else nullcontext()

    def _bell_rung(self) -> None:
        if self.mailbox is not None:
            self.mailbox.rung()

    # -- running --------------------------------------------------------

    def start(self) -> None:
        """Let the guest run."""
        self.timings.mark("guest started")
        self._started = True
        if self.trace is not None:
            self.trace.begin()
        if self.restored:
            # However long ago it was saved, no CPU of the guest was stuck.
            for vcpu in self.hardware.vcpus:
                vcpu.mark_stopped()
            self.stand(self._begins_failed)
            self._control.wake_disks()
        self._control.start()
        self._vcpus.start()

    def run(self, timeout: float | None = None) -> Outcome:
        """:meth:`start`, then :meth:`wait`."""
        self.start()
        return self.wait(timeout)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the run has ended and every vCPU has stopped; return the outcome.

        After ``timeout`` seconds the run ends with TIMEOUT. If a bug in pykvm
        raised an exception in the thread of a vCPU or device, it is raised here.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        halt = HaltPoll(self._vcpus, self._control.unless_busy)
        while not self._end.wait(_until(deadline, halt.seconds)):
            if deadline is not None and time.monotonic() >= deadline:
                self.finish(Outcome.timeout(timeout or 0))
                continue
            if halt.poll():
                self.finish(Outcome.halted())
        self._stop_vcpus()
        self.timings.mark("ended")
        if self._errors:
            raise self._errors[0]
        return self._end.outcome

    def finish(self, outcome: Outcome) -> None:
        """End the run with ``outcome`` unless it has ended. For any thread and signal handlers."""
        outcome = self.board.judge(outcome)
        if self._end.set(outcome):
            if outcome.kind is OutcomeKind.PANIC:
                self._announcer.announce(GuestPanicked(outcome.reason))
            self._announcer.announce(Shutdown(outcome))

    @property
    def outcome(self) -> Outcome | None:
        """The way in which the run ended; None before the end."""
        return self._end.outcome if self._end else None

    # -- pausing and resuming -----------------------------------------------

    @property
    def status(self) -> RunState:
        """The present state of the machine."""
        if self._end:
            return RunState.after(self._end.outcome)
        return self._control.state if self._started else RunState.PRELAUNCH

    @property
    def resumes(self) -> int:
        """The number of times that the guest resumed after a stop."""
        return self._control.resumes

    def pause(self, timeout: float = STOP_SECONDS) -> None:
        """Stop the guest: on return no vCPU runs, and no disk executes anything.

        Harmless if the guest is stopped or the run is over. A machine that is
        paused before its start starts stopped. TimeoutError, and the guest
        keeps running, if a vCPU is busy for ``timeout`` seconds, such as with
        a console sink that blocks. The threads of vCPUs and disks must not
        call this.
        """
        self._control.pause(timeout)

    def resume(self) -> None:
        """Resume the guest after :meth:`pause` or an I/O error; else harmless.

        Disks first retry the requests that failed. For the same threads as :meth:`pause`.
        """
        self._control.resume()

    def snapshot(self) -> "MachineSnapshot":
        """The machine as it is now, in memory; the caller closes it.

        The guest waits for some milliseconds, and goes on unless it is paused. UsageError if
        the machine does not run, or if its memory is shared; SnapshotError if the host cannot
        keep its memory or the writes to a disk; TimeoutError as of :meth:`pause`, and if a disk's
        operations take longer. For the same threads.
        """
        from pykvm.machine.saving import take

        with self._snapshots:
            self._control.check_open()
            return take(self)

    def reset(self, snapshot: "MachineSnapshot") -> None:
        """Put the machine back to ``snapshot``, of this machine or one like it, in place.

        It goes on from there, unless it is paused. To change a sink before the guest runs,
        pause the machine, reset it, change the sink, and resume it. Disks that were added since
        are removed. UsageError and TimeoutError as of :meth:`snapshot`. UsageError also if the
        guest's writes to a disk change its image. SnapshotError if the snapshot is of a different
        machine, and nothing happens, or if it makes no sense, and then the run ends with ERROR.
        """
        from pykvm.machine.resetting import reset

        with self._snapshots:
            self._control.check_open()
            reset(self, snapshot)

    def save(self, folder: "Path | str") -> None:
        """Write a :meth:`snapshot` as the new folder ``folder``. SnapshotError."""
        from pykvm.machine.saving import save

        save(self, folder)

    def request_pause(self) -> None:
        """Ask for :meth:`pause` without waiting for it. For any thread."""
        self._control.request_pause()

    def request_resume(self) -> None:
        """Ask for :meth:`resume`, after earlier requests, without waiting. For any thread."""
        self._control.request_resume()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each event (:mod:`pykvm.machine.events`) from now on.

        One thread calls all listeners, one at a time. In it a listener may
        call any method of the machine; while it blocks, later events wait. An
        exception in a listener ends the run like any other bug. The function
        that is returned removes the listener, after the delivery of all
        earlier events.
        """
        return self._announcer.listen(listener)

    def flush_events(self) -> None:
        """Wait until all earlier events are delivered. In a listener, return at once."""
        self._announcer.flush()

    def paused(self) -> AbstractContextManager[None]:
        """A context in which no vCPU runs. Devices continue to serve their requests.

        It is for a short look at the guest. It causes no event, and it nests
        with itself and with :meth:`pause`.
        """
        return self._vcpus.paused()

    def still(self) -> AbstractContextManager[None]:
        """A context in which no vCPU runs, and no disk executes anything; without an event."""
        return self._control.still(STOP_SECONDS)

    @property
    def failed(self) -> bool:
        """An error of a disk has stopped the guest, or is about to."""
        return self._control.failed

    def stand(self, failed: bool) -> None:
        """The machine is at a saved moment, at which it was :attr:`failed` or not.

        Only within :meth:`still`, or before the start.
        """
        self._control.put_back(failed)
        if failed and not self._announcer.heard:
            from pykvm.machine.disk_reports import failure

            errors = [(disk.name, disk.last_error) for disk in self.disks if disk.last_error]
            self.finish(failure(*errors[0]) if errors else Outcome.error("a disk had failed"))

    def close(self) -> None:
        """Stop the vCPUs, drain and close the devices, free the memory. May be repeated.

        TimeoutError if a vCPU's thread is stuck in a sink; then the machine's memory and
        devices stay.
        """
        self._stop_vcpus()
        self._control.close()
        with self._snapshots:  # one that a different thread has begun ends first
            self._owned.close()
        self._announcer.close()

    # -- disks that come and go -------------------------------------------

    def add_disk(self, disk: "DiskConfig | Path | str") -> "Disk":
        """Plug a disk in: a DiskConfig, or a path or size as in MachineConfig. UsageError.

        A guest that runs finds it when it scans its PCI bus. For the same threads as
        :meth:`pause`.
        """
        from pykvm.machine.plugging import add_disk

        with self._control.steady():
            return add_disk(self, disk, self._services)

    def remove_disk(self, disk: "Disk") -> None:
        """Unplug ``disk``, when its operations in flight are over, and close its image.

        The guest's driver has to let go of it before: in Linux, write 1 to the file ``remove``
        of the PCI device ``disk.number``. Otherwise the driver reads all ones from it, and Linux
        may wait for it for ever. UsageError if the machine does not have the disk. TimeoutError
        and threads as of :meth:`pause`.
        """
        from pykvm.machine.plugging import remove_disk

        with self._control.steady():
            remove_disk(self, disk)

    # -- statistics -----------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """The object that ``--stats`` writes: ``disks``, and ``exits`` of vCPUs by cause."""
        disks = [disk.statistics() for disk in self.disks]
        return {"disks": disks, "exits": dict(self._vcpus.exits())}

    # -- inside ---------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        """Take console output as the default sink; memory use is bounded."""
        self.console_output += data
        if len(self.console_output) > 2 * CONSOLE_BYTES:
            del self.console_output[:-CONSOLE_BYTES]

    def _failed(self, error: BaseException) -> None:
        """End the run because ``error`` ended a thread of pykvm; :meth:`wait` raises it."""
        self._errors.append(error)
        self.finish(Outcome.error(str(error)))

    def _stop_vcpus(self) -> None:
        self._vcpus.stop()
        self.on_end()
        self._vcpus.join()


def _until(deadline: float | None, pause: float) -> float:
    """The seconds to wait: ``pause``, but not beyond ``deadline``."""
    return pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))
