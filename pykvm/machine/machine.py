"""A virtual machine from its configuration to the end of its run."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

from pykvm.devices.virtio_blk import Image, VirtioBlk
from pykvm.errors import UsageError
from pykvm.kvm.constants import KVM_CAP_MAX_VCPUS
from pykvm.kvm.pci_platform import KvmPlatform
from pykvm.kvm.probe import HostTraits, probe
from pykvm.kvm.runner import VcpuThread
from pykvm.kvm.system import Kvm
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.vm import Vm
from pykvm.machine.board import Board
from pykvm.machine.config import ConsoleMode, DiskConfig, MachineConfig
from pykvm.machine.cpu import apply_entry
from pykvm.machine.end import EndOfRun
from pykvm.machine.exits import ExitHandler
from pykvm.machine.guest import LINUX, resolve
from pykvm.machine.halt import all_halted
from pykvm.machine.timings import Timings
from pykvm.memory import GuestMemory, Ram, Region
from pykvm.memory.guest import HOLE_END
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.platform.outcome import Outcome
from pykvm.x86.loader import load_kernel

if TYPE_CHECKING:
    from pykvm.kvm.assist import Assist

KVM_IDENTITY_MAP = 0xFFFB_C000
"""A page, and then three for the TSS, that VMX needs where no RAM or device is."""
KVM_TSS = KVM_IDENTITY_MAP + 0x1000

FIRST_LOOK_SECONDS = 0.1
LAST_LOOK_SECONDS = 1.0
"""A guest that makes no exits is looked at for having halted for good: soon after it fell
silent, then ever more rarely, so that an idle guest costs nothing that could be measured."""
PAUSE_SECONDS = 10.0


class Machine:
    """Owns a VM: its memory, vCPUs, devices and threads. A context manager.

    Building it opens the files, loads the kernel and starts no thread;
    :meth:`start` lets the guest run, :meth:`wait` waits for its end, and
    :meth:`close` (or leaving the ``with`` block) stops and frees everything.

    ``console`` receives what the guest prints, in the thread that it prints
    from; by default it is kept in ``console_output``. ``ram`` is the guest's
    memory; ``notices`` are sentences that a user should see. ``on_channel``
    gets what the guest sends over its second UART. ``on_end`` is called by
    :meth:`wait` when the run is over and before vCPU threads are joined, so
    that a console sink that blocks can be told to give up.

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
        self.timings = timings or Timings()
        self.console_output = bytearray()
        self.on_channel: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.notices: list[str] = []
        self._errors: list[BaseException] = []
        self._threads: list[VcpuThread] = []
        self._disks: list[tuple[DiskConfig, VirtioBlk]] = []
        with ExitStack() as stack:
            self._end = stack.enter_context(EndOfRun())
            self._build(stack, config, console or self.console_output.extend)
            self._owned = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _build(
        self, stack: ExitStack, config: MachineConfig, console: Callable[[bytes], None]
    ) -> None:
        kvm = stack.enter_context(Kvm.open())
        self.traits: HostTraits = probe(kvm)
        self.timings.mark("host probed")
        guest = resolve(config, "emulated" if self.traits.needs_assists else "native")
        _check_cpus(kvm, config.cpus)
        memory = GuestMemory(guest.memory)
        stack.callback(memory.close)
        self.ram: Ram = memory.ram
        vm = stack.enter_context(_create_vm(kvm, memory))
        vcpus = [stack.enter_context(vm.create_vcpu(index)) for index in range(config.cpus)]
        platform = KvmPlatform(vm)
        self.board = Board(
            platform,
            vm.irq_line,
            memory_sizes(memory.regions),
            console=console,
            channel=self._channel_output,
            finish=self.finish,
            # Input must not arrive, and be echoed, before the guest has turned echo off.
            console_waits=guest.is_bundle and config.console is ConsoleMode.PIPE,
        )
        stack.callback(self.board.close)
        for disk in config.disks:
            self._add_disk(stack, disk, platform)
        assist = self._assist(vm, vcpus)

        def command_line(kind: str) -> str:
            words = [guest.command_line(kind)]
            if assist and kind == LINUX:
                words += assist.command_line(vcpus[0].tsc_khz())
            return " ".join(words)

        self.timings.mark("machine built")
        loaded = load_kernel(
            self.ram,
            guest.kernel,
            initrd=guest.initrd,
            command_line=command_line,
            cpus=config.cpus,
            pci_devices=self.board.pci.functions,
        )
        self.description = loaded.description
        self.timings.mark("kernel loaded")
        cpuid = kvm.supported_cpuid()
        if assist:
            cpuid = assist.cpuid(cpuid)
        for vcpu in vcpus:
            apply_entry(vcpu, cpuid, config.cpus, loaded.entry)
            handler = ExitHandler(
                vcpu,
                self.board.ports,
                self.board.mmio,
                self.finish,
                self._end.__bool__,
                assist.handle if assist else None,
            )
            self._threads.append(VcpuThread(vcpu, handler, self._vcpu_ended))
        stack.callback(self._stop_vcpus)

    def _add_disk(self, stack: ExitStack, disk: DiskConfig, platform: KvmPlatform) -> None:
        image = Image(disk.path, disk.readonly)
        if image.notice:
            self.notices.append(image.notice)
        device = VirtioBlk(image, serial=disk.serial, on_failure=self._failed)
        stack.callback(device.close)
        self.board.pci.add(VirtioPci(device, self.ram, platform))
        self._disks.append((disk, device))

    def _channel_output(self, data: bytes) -> None:
        if self.on_channel is not None:
            self.on_channel(data)

    def _assist(self, vm: Vm, vcpus: Sequence[Vcpu]) -> "Assist | None":
        """The helper that this host needs, or None: ordinary hosts never import it."""
        if not self.traits.needs_assists:
            return None
        from pykvm.kvm.assist import Assist

        assist = Assist(self.traits, vm, self.ram, vcpus)
        for vcpu in vcpus:
            assist.prepare(vcpu)
        return assist

    # -- running --------------------------------------------------------

    def start(self) -> None:
        """Let the guest run."""
        self.timings.mark("guest started")
        for thread in self._threads:
            thread.start()

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
        exits, pause = -1, FIRST_LOOK_SECONDS
        while not self._end.wait(_until(deadline, pause)):
            if deadline is not None and time.monotonic() >= deadline:
                self.finish(Outcome.timeout(timeout or 0))
                continue
            # A guest that makes exits is alive; one that makes none is looked at.
            before, exits = exits, self._exits()
            pause = min(2 * pause, LAST_LOOK_SECONDS) if before == exits else FIRST_LOOK_SECONDS
            if before == exits and all_halted(self._threads):
                self.finish(Outcome.halted())
        if self.on_end is not None:
            self.on_end()
        self._stop_vcpus()
        self.timings.mark("ended")
        if self._errors:
            raise self._errors[0]
        return self._end.outcome

    def finish(self, outcome: Outcome) -> None:
        """End the run with ``outcome`` unless it has ended: any thread, also signal handlers."""
        self._end.set(self.board.judge(outcome))

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._end.outcome if self._end else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no vCPU runs; devices go on with what they have been given."""
        with ExitStack() as stack:
            for thread in self._threads:
                stack.enter_context(thread.paused(PAUSE_SECONDS))
            yield

    def close(self) -> None:
        """Stop the vCPUs, drain and close the devices, free the memory. May be repeated."""
        self._owned.close()

    # -- looking at it --------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """What ``--stats`` writes: ``disks``, and vCPU ``exits`` by cause."""
        exits: Counter[str] = Counter()
        for thread in self._threads:
            exits.update(thread.exit_counts)
        disks = [
            {"path": str(config.path), "serial": config.serial, **device.stats.as_dict()}
            for config, device in self._disks
        ]
        return {"disks": disks, "exits": dict(exits)}

    # -- inside ---------------------------------------------------------

    def _exits(self) -> int:
        """How many exits the guest itself caused so far."""
        return sum(
            count
            for thread in self._threads
            for cause, count in thread.exit_counts.items()
            if cause != "Interrupted"
        )

    def _vcpu_ended(self, thread: VcpuThread) -> None:
        if thread.error is not None:
            self._failed(thread.error)

    def _failed(self, error: BaseException) -> None:
        """A thread of ours died of ``error``: the run is over, and :meth:`wait` raises it."""
        self._errors.append(error)
        self.finish(Outcome.error(str(error)))

    def _stop_vcpus(self) -> None:
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(PAUSE_SECONDS)


def _until(deadline: float | None, pause: float) -> float:
    """``pause`` seconds, but not beyond ``deadline``."""
    return pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))


def _create_vm(kvm: Kvm, memory: GuestMemory) -> Vm:
    """A VM with KVM's interrupt controllers and timer, and ``memory``."""
    vm = kvm.create_vm()
    try:
        vm.set_identity_map_address(KVM_IDENTITY_MAP)
        vm.set_tss_address(KVM_TSS)
        vm.create_irqchip()
        vm.create_pit2()
        for slot, region in enumerate(memory.regions):
            vm.set_memory(slot, region.start, region.size, memory.address + region.offset)
    except BaseException:
        vm.close()
        raise
    return vm


def memory_sizes(regions: Sequence[Region]) -> tuple[int, int]:
    """Bytes of RAM below and above 4 GiB."""
    low = sum(region.size for region in regions if region.start < HOLE_END)
    return low, sum(region.size for region in regions) - low


def _check_cpus(kvm: Kvm, cpus: int) -> None:
    limit = kvm.check_extension(KVM_CAP_MAX_VCPUS)
    if not 1 <= cpus <= limit:
        raise UsageError(
            f"this host cannot give a guest {cpus} CPUs", f"give --cpus from 1 to {limit}"
        )
