"""A virtual machine from its configuration to the end of its run."""

import errno
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from pykvm.forms import refused
from pykvm.kvm.pci_services import KvmPciServices
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Self
from pykvm.machine.board import Board
from pykvm.machine.config import ConsoleMode, MachineConfig
from pykvm.machine.create import Hardware, memory_sizes
from pykvm.machine.end import EndOfRun
from pykvm.machine.events import (
    Announcer,
    BlockIoError,
    DiskHeld,
    GuestPanicked,
    HostShortage,
    Listener,
    Shutdown,
)
from pykvm.machine.exits import ExitHandler
from pykvm.machine.halt import HaltPoll
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_state import RunControl, RunState
from pykvm.machine.timings import Timings
from pykvm.machine.tracing import disk_trace, open_trace
from pykvm.machine.vcpu_group import STOP_SECONDS, VcpuGroup

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk import IoError
    from pykvm.machine.disks import Disk, DiskConfig

CONSOLE_BYTES = 1 << 20


class Machine:
    """Owns a VM: its memory, vCPUs, devices and threads. A context manager.

    Building it opens the files, loads the kernel and starts no thread;
    :meth:`start` lets the guest run, :meth:`wait` waits for its end, and
    :meth:`close` (or leaving the ``with`` block) stops and frees everything.
    Any thread may do so, and several machines may run in one process.

    ``console`` and ``channel`` receive what the guest sends over its first
    and second UART, in the vCPU's thread; they may be set before the start.
    By default the first is kept in ``console_output``, the last MiB at least,
    and the second dropped.
    What they raise ends the run like any other bug, and a sink that blocks
    holds up the guest and nothing else. ``on_end`` is called, perhaps more
    than once, when the run is over and vCPU threads are about to be joined:
    a sink that blocks is then to give up.

    ``config`` is the configuration, ``ram`` the guest's memory, ``disks`` are
    its disks in the order of the configuration, ``notices`` are sentences that
    a user should see, and ``trace`` is the file that was asked for.

    An I/O error for which a disk's policy stops the guest ends the run with
    ERROR if nobody listens (:meth:`listen`), who could let it go on.

    UsageError and HostError say what is wrong with the configuration and
    with this host.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        console: Callable[[bytes], None] | None = None,
        timings: Timings | None = None,
    ) -> None:
        if not isinstance(config, MachineConfig):
            raise refused("config", config, "give a MachineConfig")
        self.config = config
        self.timings = timings or Timings()
        self.console_output = bytearray()
        self.console: Callable[[bytes], None] = console or self._keep
        self.channel: Callable[[bytes], None] = lambda data: None
        self.on_end: Callable[[], None] = lambda: None
        self.notices: list[str] = []
        self.disks: list[Disk] = []
        self._end = EndOfRun()
        self._errors: list[BaseException] = []
        self._vcpus = VcpuGroup(self._failed)
        self._started = False
        self._announcer = Announcer(self._failed)
        self._control = RunControl(
            self._vcpus.threads,
            self.disks,
            self._announcer.announce,
            self._end.__bool__,
            self._failed,
        )
        with ExitStack() as stack:
            self._build(stack, config)
            self._owned = stack.pop_all()

    def __repr__(self) -> str:
        return f"<Machine: {self.status.value}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _build(self, stack: ExitStack, config: MachineConfig) -> None:
        self.trace = open_trace(stack, config)
        hardware = Hardware(stack, config, self.timings.mark)
        guest = hardware.guest
        if guest.notice:
            self.notices.append(guest.notice)
        self.traits = hardware.traits
        self.memory = hardware.memory
        self.ram = hardware.memory.ram
        services = KvmPciServices(hardware.vm)
        self.board = Board(
            services,
            hardware.vm.irq_line,
            memory_sizes(hardware.memory.regions),
            console=self._console_output,
            channel=self._channel_output,
            finish=self.finish,
            # Input must not arrive, and be echoed, before the guest has turned echo off.
            console_waits=guest.is_bundle and config.console is ConsoleMode.PIPE,
        )
        self.board.console.on_failure = self.board.channel.on_failure = self._failed
        stack.callback(self.board.close)
        for disk in config.disks:
            self._add_disk(disk, services)
        self.timings.mark("machine built")
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
        from pykvm.devices.virtio_blk import VirtioBlk
        from pykvm.machine.disks import Disk, open_image
        from pykvm.pci.virtio_pci import VirtioPci

        name = f"virtio{len(self.disks)}"
        with ExitStack() as undo:
            image, engine, reason = open_image(disk)
            undo.callback(image.close)
            device = VirtioBlk(
                image,
                disk,
                engine=engine,
                on_error=partial(self._io_error, len(self.disks)),
                telling=self._control.telling,
                on_failure=self._failed,
                on_shortage=lambda lack: self._announcer.announce(HostShortage(name, lack)),
                on_held=lambda: self._announcer.announce(DiskHeld(name)),
                over=self._end.__bool__,
                trace=disk_trace(self.trace, name, image),
            )
            self.board.pci.add(VirtioPci(device, self.ram, services))
            undo.pop_all()  # the bus closes it from now on
        self.disks.append(Disk(name, disk, device, reason))
        self.notices += image.notices

    # The sinks may be replaced after the board is built.

    def _console_output(self, data: bytes) -> None:
        self.console(data)

    def _channel_output(self, data: bytes) -> None:
        self.channel(data)

    # -- running --------------------------------------------------------

    def start(self) -> None:
        """Let the guest run."""
        self.timings.mark("guest started")
        self._started = True
        if self.trace:
            self.trace.begin()
        self._control.start()
        self._vcpus.start()

    def run(self, timeout: float | None = None) -> Outcome:
        """:meth:`start`, then :meth:`wait`."""
        self.start()
        return self.wait(timeout)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the run has ended and every vCPU has stopped; how it ended.

        After ``timeout`` seconds it is ended with TIMEOUT. An exception of
        pykvm's own in a vCPU's or a device's thread is raised here.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        halt = HaltPoll(self._vcpus, lambda: self._control.undisturbed)
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
        """End the run with ``outcome`` unless it has ended: any thread, also signal handlers."""
        outcome = self.board.judge(outcome)
        if self._end.set(outcome):
            if outcome.kind is OutcomeKind.PANIC:
                self._announcer.announce(GuestPanicked(outcome.reason))
            self._announcer.announce(Shutdown(outcome))

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._end.outcome if self._end else None

    # -- stopping and going on ----------------------------------------------

    @property
    def status(self) -> RunState:
        """What the machine is doing."""
        if self._end:
            return RunState.after(self._end.outcome)
        return self._control.state if self._started else RunState.PRELAUNCH

    @property
    def resumes(self) -> int:
        """How often the guest has gone on after a stop."""
        return self._control.resumes

    def pause(self, timeout: float = STOP_SECONDS) -> None:
        """Stop the guest: on return no vCPU runs, and no disk executes anything.

        Harmless if it is stopped or the run is over. A machine that was not
        started yet starts stopped. TimeoutError, and the guest runs on, if a
        vCPU is busy for ``timeout`` seconds, such as with a console sink that
        blocks. Neither for the threads of vCPUs nor for those of disks.
        """
        self._control.pause(timeout)

    def resume(self) -> None:
        """Let the guest go on, after :meth:`pause` or an I/O error; else harmless.

        Disks first try again what they could not do. For the same threads as :meth:`pause`.
        """
        self._control.resume()

    def request_pause(self) -> None:
        """:meth:`pause`, without waiting, from any thread; it takes effect when it can."""
        self._control.request_pause()

    def request_resume(self) -> None:
        """:meth:`resume`, without waiting, from any thread; after earlier requests."""
        self._control.request_resume()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have ``listener`` called with each event (:mod:`pykvm.machine.events`) from now on.

        Listeners are called one at a time in a thread of their own, in which
        they may do all that a user of this machine may; while one blocks,
        later events wait. An exception ends the run like any other bug.
        The function that is returned ends this, after all that was announced before.
        """
        return self._announcer.listen(listener)

    def flush_events(self) -> None:
        """Return when listeners have been told all that has happened; at once if called by one."""
        self._announcer.flush()

    def paused(self) -> AbstractContextManager[None]:
        """Within it no vCPU runs; devices go on with what they have been given.

        To look at the guest for a moment: no event tells of it, and it nests
        with itself and with :meth:`pause`.
        """
        return self._vcpus.paused()

    def close(self) -> None:
        """Stop the vCPUs, drain and close the devices, free the memory. May be repeated.

        TimeoutError if a vCPU's thread is stuck in a sink; nothing it uses is freed then.
        """
        self._stop_vcpus()
        self._control.close()
        self._owned.close()
        self._announcer.close()

    # -- looking at it --------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """What ``--stats`` writes: ``disks``, and vCPU ``exits`` by cause."""
        disks = [disk.statistics() for disk in self.disks]
        return {"disks": disks, "exits": dict(self._vcpus.exits())}

    # -- inside ---------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        """The console's default sink: a guest that prints for ever fills nothing."""
        self.console_output += data
        if len(self.console_output) > 2 * CONSOLE_BYTES:
            del self.console_output[:-CONSOLE_BYTES]

    def _io_error(self, index: int, error: "IoError") -> None:
        """A disk's thread reports; it must not wait for the stop that it may ask for."""
        disk = self.disks[index]
        disk.failed(error)
        event = BlockIoError(disk.name, error)
        if error.stops:
            if not self._announcer.heard:
                # Nobody would learn that the guest waits for a resume.
                cause = f"{errno.errorcode.get(error.errno, error.errno)}"
                self.finish(Outcome.error(f"{disk.name}: a {error.operation} failed: {cause}"))
            self._control.io_error(event)
        else:
            self._announcer.announce(event)

    def _failed(self, error: BaseException) -> None:
        """A thread of ours died of ``error``: the run is over, and :meth:`wait` raises it."""
        self._errors.append(error)
        self.finish(Outcome.error(str(error)))

    def _stop_vcpus(self) -> None:
        self._vcpus.stop()
        self.on_end()
        self._vcpus.join()


def _until(deadline: float | None, pause: float) -> float:
    """``pause`` seconds, but not beyond ``deadline``."""
    return pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))
