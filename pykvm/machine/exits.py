"""The answer to each vCPU exit."""

from collections.abc import Callable

from pykvm.bus import Bus
from pykvm.errors import PykvmError
from pykvm.kvm.constants import (
    KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
)
from pykvm.kvm.exits import (
    Exit,
    FailEntry,
    InternalError,
    IoExit,
    MmioExit,
    MsrRead,
    MsrWrite,
    Shutdown,
    SystemEvent,
)
from pykvm.kvm.vcpu import Vcpu
from pykvm.machine.outcome import Outcome

Assistant = Callable[[Vcpu, Exit], bool]
"""Handles an exit that only hosts without hardware virtualization make; False for other exits."""


class GuestStopped(PykvmError):
    """A vCPU cannot continue, for a reason that pykvm cannot remove."""


class ExitHandler:
    """Takes the exits of one vCPU to the buses; see :data:`pykvm.kvm.runner.Handler`.

    ``finished()`` is True once the run has ended. The access itself may end
    the run, and then the guest must not execute one more instruction.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        ports: Bus,
        mmio: Bus,
        finish: Callable[[Outcome], None],
        finished: Callable[[], bool],
        assistant: Assistant | None,
    ) -> None:
        self._vcpu = vcpu
        self._ports = ports
        self._mmio = mmio
        self._finish = finish
        self._finished = finished
        self._assistant = assistant

    def __call__(self, exit_: Exit) -> object | None:
        """Handle ``exit_``; a result other than None ends the vCPU's thread."""
        if isinstance(exit_, MmioExit):
            if exit_.is_write:
                self._mmio.write(exit_.address, exit_.size, exit_.value)
            else:
                exit_.set_value(self._mmio.read(exit_.address, exit_.size))
        elif isinstance(exit_, IoExit):
            self._port(exit_)
        elif self._assistant is None or not self._assistant(self._vcpu, exit_):
            self._other(exit_)
        return True if self._finished() else None

    def _port(self, exit_: IoExit) -> None:
        ports, port, size = self._ports, exit_.port, exit_.size
        if exit_.is_write:
            for value in exit_.values():
                ports.write(port, size, value)
        else:
            exit_.set_values([ports.read(port, size) for _ in range(exit_.count)])

    def _other(self, exit_: Exit) -> None:
        if isinstance(exit_, Shutdown):
            self._finish(Outcome.triple_fault())
        elif isinstance(exit_, SystemEvent):
            self._system_event(exit_)
        elif isinstance(exit_, MsrRead | MsrWrite):
            exit_.fault()
        elif isinstance(exit_, InternalError):
            raise self._refused(exit_)
        elif isinstance(exit_, FailEntry):
            raise GuestStopped(
                f"the processor refused the guest's state (reason {exit_.hardware_reason:#x})",
                "'pykvm doctor' shows what this host can do",
            )
        else:
            raise GuestStopped(
                f"KVM stopped the guest for a reason that pykvm does not know: {exit_}",
                "report it with the version of the host's kernel",
            )

    def _system_event(self, event: SystemEvent) -> None:
        kinds = {
            KVM_SYSTEM_EVENT_SHUTDOWN: Outcome.power_off(0),
            KVM_SYSTEM_EVENT_RESET: Outcome.reset("KVM"),
            KVM_SYSTEM_EVENT_CRASH: Outcome.panic(),
        }
        outcome = kinds.get(event.type)
        if outcome is None:
            raise GuestStopped(f"KVM reported an unknown system event: {event}", "report it")
        self._finish(outcome)

    def _refused(self, error: InternalError) -> GuestStopped:
        where = f"rip {self._vcpu.regs.rip:#x}, instruction bytes {error.instruction.hex(' ')}"
        return GuestStopped(
            f"KVM cannot emulate an instruction of the guest (suberror {error.suberror}; {where})",
            "use a kernel without that instruction, such as the bundled guest's; "
            "'pykvm doctor' shows what this host lacks",
        )
