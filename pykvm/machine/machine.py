"""A virtual machine from its configuration to the end of its run."""

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
from pykvm.machine.exits import ExitHandler
from pykvm.machine.mailbox import Mailbox
from pykvm.machine.outcome import Outcome
from pykvm.machine.run import Run
from pykvm.machine.timings import Timings
from pykvm.machine.tracing import open_trace

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.machine.disks import Disk
    from pykvm.machine.snapshot import MachineSnapshot

CONSOLE_BYTES = 1 << 20


class Machine(Run):
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
    ``restored``: it began from a snapshot, or was put back to one. ``unseen_disks``:
    there may be disks that the guest finds only when it scans its PCI bus.
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
        super().__init__(timings or Timings())
        self.config = config
        self.console_output = bytearray()
        self.console: Callable[[bytes], None] = console or self._keep
        self.channel: Callable[[bytes], None] = lambda data: None
        self.mailbox: Mailbox | None = None
        self.notices: list[str] = []
        self._snapshots = Lock()
        self._begins_failed = False
        self.restored = snapshot is not None
        self.unseen_disks = False
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
        self._judge = self.board.judge
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
            self.unseen_disks = saved.unseen_disks or len(config.disks) > old_disks
        for disk in config.disks[old_disks:]:
            self._add_disk(disk, services)
        self.timings.mark("machine built")
        if not saved:
            self.description, notice = hardware.load(self.timings.mark)
            if notice:
                self.notices.append(notice)
        assist = hardware.assist
        for vcpu in hardware.vcpus:
            handler = ExitHandler(
                vcpu,
                self.board.ports,
                self.board.mmio,
                self.finish,
                self._end.__bool__,
                assist.handle if assist else None,
            )
            can_stop = assist.can_stop if assist else None
            self._vcpus.add(vcpu, handler, config.cpu_affinity, can_stop)

    def _add_disk(self, disk: "DiskConfig", services: KvmPciServices) -> None:
        from pykvm.machine.plugging import plug

        plug(self, disk, services)

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

    # -- snapshots -----------------------------------------------------

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
