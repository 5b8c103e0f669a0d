"""The state of a vCPU; an ioctl gets or sets each part."""

import errno
from collections.abc import Iterable, Mapping, Sequence

from pykvm.kvm import constants as c
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.descriptor import Descriptor
from pykvm.kvm.errors import KvmError
from pykvm.kvm.native import ffi
from pykvm.lean.typing_names import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.structs import Regs, Sregs, VcpuEvents


MSR_ENTRY_BYTES = 16


class VcpuState(Descriptor):
    """Getters return a fresh C structure (a cffi view); setters take one.

    Every call is an ioctl that waits while a thread is in KVM_RUN of the vCPU, so
    pause that thread first. Complete the port or MMIO access of the last exit
    (:meth:`pykvm.kvm.vcpu.Vcpu.complete_io`) before setting registers. Otherwise
    KVM completes it later, and changes the registers again.
    """

    def _get(self, type_name: str, name: str, request: int) -> Any:
        value = ffi.new(f"{type_name} *")
        self._ioctl(name, request, value)
        return value

    def get_regs(self) -> "Regs":
        """The general registers."""
        regs: Regs = self._get("struct kvm_regs", "KVM_GET_REGS", c.KVM_GET_REGS)
        return regs

    def set_regs(self, regs: "Regs") -> None:
        """Load the general registers."""
        self._ioctl("KVM_SET_REGS", c.KVM_SET_REGS, regs)

    def get_sregs(self) -> "Sregs":
        """Segment, control and system registers."""
        sregs: Sregs = self._get("struct kvm_sregs", "KVM_GET_SREGS", c.KVM_GET_SREGS)
        return sregs

    def set_sregs(self, sregs: "Sregs") -> None:
        """Load the registers; KvmError EINVAL if they contradict each other."""
        self._ioctl("KVM_SET_SREGS", c.KVM_SET_SREGS, sregs)

    def get_events(self) -> "VcpuEvents":
        """Pending and injected exceptions, interrupts and NMIs."""
        events: VcpuEvents = self._get(
            "struct kvm_vcpu_events", "KVM_GET_VCPU_EVENTS", c.KVM_GET_VCPU_EVENTS
        )
        return events

    def get_debugregs(self) -> Any:
        """struct kvm_debugregs: the guest's own DR0-DR3, DR6 and DR7."""
        return self._get("struct kvm_debugregs", "KVM_GET_DEBUGREGS", c.KVM_GET_DEBUGREGS)

    def set_debugregs(self, debugregs: Any) -> None:
        """Load a struct kvm_debugregs."""
        self._ioctl("KVM_SET_DEBUGREGS", c.KVM_SET_DEBUGREGS, debugregs)

    def get_lapic(self) -> bytes:
        """The local APIC's register page, 1024 bytes."""
        state = self._get("struct kvm_lapic_state", "KVM_GET_LAPIC", c.KVM_GET_LAPIC)
        return bytes(ffi.buffer(state))

    def set_lapic(self, regs: bytes) -> None:
        """Load the local APIC's register page, 1024 bytes."""
        state = ffi.new("struct kvm_lapic_state *")
        ffi.buffer(state)[:] = regs
        self._ioctl("KVM_SET_LAPIC", c.KVM_SET_LAPIC, state)

    def get_mp_state(self) -> int:
        """KVM_MP_STATE_*: the vCPU runs, is halted, or waits for INIT or SIPI."""
        state = self._get("struct kvm_mp_state", "KVM_GET_MP_STATE", c.KVM_GET_MP_STATE)
        return int(state.mp_state)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of MSRs; KvmError names the first that KVM does not have."""
        wanted = list(indices)
        found = self._first_msrs(wanted)
        if len(found) < len(wanted):
            raise KvmError("KVM_GET_MSRS", 0, f"KVM cannot read MSR {wanted[len(found)]:#x}")
        return dict(found)

    def get_readable_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of those MSRs that KVM can read on this vCPU, in the order of ``indices``."""
        wanted, values = list(indices), dict[int, int]()
        while wanted:
            found = self._first_msrs(wanted)
            values.update(found)
            del wanted[: len(found) + 1]
        return values

    def renewed_msrs(self, entries: bytes) -> bytes:
        """The structures kvm_msr_entry of ``entries`` with the present values.

        They end before the first MSR that KVM cannot read.
        """
        count = len(entries) // MSR_ENTRY_BYTES
        table = ffi.new("struct kvm_msrs *", {"entries": count})
        table.nmsrs = count
        view = ffi.buffer(table.entries, len(entries))
        view[:] = entries
        done = self._ioctl("KVM_GET_MSRS", c.KVM_GET_MSRS, table)
        return bytes(view[: done * MSR_ENTRY_BYTES])

    def _first_msrs(self, wanted: list[int]) -> list[tuple[int, int]]:
        """(index, value) of the MSRs before the first that KVM cannot read."""
        table = ffi.new("struct kvm_msrs *", {"entries": len(wanted)})
        table.nmsrs = len(wanted)
        for entry, index in zip(table.entries[0 : len(wanted)], wanted, strict=True):
            entry.index = index
        done = self._ioctl("KVM_GET_MSRS", c.KVM_GET_MSRS, table)
        return [(entry.index, entry.data) for entry in table.entries[0:done]]

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Load MSRs in the mapping's order; KvmError names the first that KVM refuses."""
        self.set_msr_list(list(values.items()))

    def set_msr_list(self, values: Sequence[tuple[int, int]]) -> None:
        """Load (index, value) one after the other, an MSR perhaps twice; KvmError as above."""
        table = ffi.new("struct kvm_msrs *", {"entries": len(values)})
        table.nmsrs = len(values)
        for entry, (index, value) in zip(table.entries[0 : len(values)], values, strict=True):
            entry.index, entry.data = index, value
        done = self._ioctl("KVM_SET_MSRS", c.KVM_SET_MSRS, table)
        if done < len(values):
            index = table.entries[done].index
            raise KvmError("KVM_SET_MSRS", 0, f"KVM refuses the value for MSR {index:#x}")

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """Set the CPUID leaves that the guest sees, before the vCPU first runs."""
        rows = [
            {
                "function": e.function,
                "index": e.index,
                "flags": e.flags,
                "eax": e.eax,
                "ebx": e.ebx,
                "ecx": e.ecx,
                "edx": e.edx,
            }
            for e in entries
        ]
        table = ffi.new("struct kvm_cpuid2 *", {"nent": len(rows), "entries": rows})
        self._ioctl("KVM_SET_CPUID2", c.KVM_SET_CPUID2, table)

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """Debug the guest: ``control`` is KVM_GUESTDBG_* bits, ``debugreg`` DR0 to DR7.

        With KVM_GUESTDBG_USE_HW_BP, ``debugreg`` replaces the guest's own
        registers. 0 ends debugging. Breakpoints and steps are Debug exits.
        """
        debug = ffi.new("struct kvm_guest_debug *")
        debug.control = control
        for number, value in enumerate(debugreg):
            debug.arch.debugreg[number] = value
        self._ioctl("KVM_SET_GUEST_DEBUG", c.KVM_SET_GUEST_DEBUG, debug)

    def mark_stopped(self) -> None:
        """Tell a guest with kvm-clock that it did not run for a while.

        Linux's lockup detectors then ignore that time. A guest without kvm-clock
        is not told (Documentation/virt/kvm/api.rst, KVM_KVMCLOCK_CTRL).
        """
        try:
            self._ioctl("KVM_KVMCLOCK_CTRL", c.KVM_KVMCLOCK_CTRL)
        except KvmError as error:
            if error.errno != errno.EINVAL:  # the guest has no kvm-clock
                raise

    def tsc_khz(self) -> int:
        """The guest's TSC frequency, in kHz."""
        return self._ioctl("KVM_GET_TSC_KHZ", c.KVM_GET_TSC_KHZ)
