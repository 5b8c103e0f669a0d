"""The whole state of a vCPU, and of a VM's chips, as bytes.

Each part is one structure of KVM's, as its ioctl gives it, under the name that
a snapshot stores it by. KVM checks the values when it takes them back; this
module checks only sizes. Nothing may run meanwhile, and the vCPU's last exit
has to be complete (:meth:`Vcpu.complete_io`).

The order matters. Reading the MP state can change the local APIC, so it comes
first. Loading general registers clears pending exceptions, so the events come
last. The system registers hold the base of the local APIC, which holds the
mode of the TSC-deadline timer, whose MSR comes after the TSC's
(Documentation/virt/kvm/api.rst; SDM volume 3, 11.5.4.1).
"""

from collections.abc import Mapping, Sequence, Set
from struct import Struct

from pykvm.errors import shown
from pykvm.kvm import constants as c
from pykvm.kvm.constants import MSR_KVM_ASYNC_PF_EN, MSR_TSC, MSR_TSC_DEADLINE
from pykvm.kvm.descriptor import Structure
from pykvm.kvm.errors import KvmError
from pykvm.kvm.native import ffi
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.vm import Vm
from pykvm.lean.typing_names import Final
from pykvm.snapshot.fields import SnapshotError

_XSAVE_BYTES: Final = 4096
_FAR: Final = 1 << 62
"""Cycles: more than a second at any frequency, so KVM does not take it for the same time."""
_MSR: Final = Struct("<I4xQ")


def _part(name: str, type_name: str, get: int, set_: int) -> Structure:
    return Structure(name, ffi.sizeof(f"struct {type_name}"), get, set_)


_MP_STATE = _part("mp_state", "kvm_mp_state", c.KVM_GET_MP_STATE, c.KVM_SET_MP_STATE)
_REGS = _part("regs", "kvm_regs", c.KVM_GET_REGS, c.KVM_SET_REGS)
_SREGS = _part("sregs", "kvm_sregs", c.KVM_GET_SREGS, c.KVM_SET_SREGS)
_XCRS = _part("xcrs", "kvm_xcrs", c.KVM_GET_XCRS, c.KVM_SET_XCRS)
_DEBUGREGS = _part("debugregs", "kvm_debugregs", c.KVM_GET_DEBUGREGS, c.KVM_SET_DEBUGREGS)
_LAPIC = _part("lapic", "kvm_lapic_state", c.KVM_GET_LAPIC, c.KVM_SET_LAPIC)
_EVENTS = _part("events", "kvm_vcpu_events", c.KVM_GET_VCPU_EVENTS, c.KVM_SET_VCPU_EVENTS)
_PIT = _part("pit", "kvm_pit_state2", c.KVM_GET_PIT2, c.KVM_SET_PIT2)
_CLOCK = _part("clock", "kvm_clock_data", c.KVM_GET_CLOCK, c.KVM_SET_CLOCK)
_CHIPS = {
    name: (_part(name, "kvm_irqchip", c.KVM_GET_IRQCHIP, c.KVM_SET_IRQCHIP), number)
    for name, number in {
        "pic0": c.KVM_IRQCHIP_PIC_MASTER,
        "pic1": c.KVM_IRQCHIP_PIC_SLAVE,
        "ioapic": c.KVM_IRQCHIP_IOAPIC,
    }.items()
}


def save_vcpu(vcpu: Vcpu, vm: Vm, msrs: Sequence[int]) -> dict[str, bytes]:
    """The state of ``vcpu``; ``msrs`` are the indices of :meth:`Kvm.msr_indices`."""
    state = {"mp_state": vcpu.read(_MP_STATE)}
    for part in (_REGS, _SREGS, _xsave(vm), _XCRS, _DEBUGREGS, _LAPIC):
        state[part.name] = vcpu.read(part)
    values = vcpu.get_readable_msrs(msrs)
    state["msrs"] = b"".join(_MSR.pack(index, value) for index, value in values.items())
    state["events"] = vcpu.read(_EVENTS)
    return state


def load_vcpu(vcpu: Vcpu, vm: Vm, state: Mapping[str, bytes], tsc: int = 0) -> int:
    """Give ``vcpu``, whose CPUID is set, a saved ``state``. Returns its TSC. SnapshotError.

    ``tsc``: the first vCPU's, for the others: the counters of one machine are synchronous, but
    each was saved a moment after the one before.
    """
    try:
        return _load_vcpu(vcpu, vm, state, tsc)
    except KvmError as error:
        raise _mismatch(error.message) from None


def _load_vcpu(vcpu: Vcpu, vm: Vm, state: Mapping[str, bytes], tsc: int) -> int:
    parts = (_MP_STATE, _REGS, _SREGS, _xsave(vm), _XCRS, _DEBUGREGS, _LAPIC)
    _check_names(state, {part.name for part in (*parts, _EVENTS)} | {"msrs"})
    for part in parts:
        vcpu.write(part, _bytes(state, part))
    saved = state["msrs"]
    if len(saved) % _MSR.size:
        raise _mismatch("the part msrs ends in the middle of an entry")
    tsc = _load_msrs(vcpu, saved, tsc)
    vcpu.write(_EVENTS, _bytes(state, _EVENTS))
    return tsc


def forget_translations(vcpu: Vcpu) -> None:
    """Have ``vcpu`` translate addresses anew, after other memory has taken the place of RAM.

    KVM does that unasked. One that emulates kernel code forgets it for the guest's programs,
    which then read the old memory; new system registers remind it.
    """
    vcpu.write(_SREGS, vcpu.read(_SREGS))


def save_chips(vm: Vm) -> dict[str, bytes]:
    """The state of the VM's timer, clock and interrupt controllers."""
    state = {part.name: vm.read(part) for part in (_PIT, _CLOCK)}
    for name, (part, number) in _CHIPS.items():
        state[name] = vm.read(part, number.to_bytes(4, "little"))
    return state


def load_chips(vm: Vm, state: Mapping[str, bytes]) -> None:
    """Give ``vm``, which has chips and vCPUs, a saved ``state``. SnapshotError.

    kvm-clock goes on from the saved moment: the guest does not notice how long it was away.
    """
    try:
        _load_chips(vm, state)
    except KvmError as error:
        raise _mismatch(error.message) from None


def _load_chips(vm: Vm, state: Mapping[str, bytes]) -> None:
    _check_names(state, {_PIT.name, _CLOCK.name, *_CHIPS})
    vm.write(_PIT, _bytes(state, _PIT))
    clock = bytearray(_bytes(state, _CLOCK))
    clock[8:] = bytes(len(clock) - 8)  # flags would have it count from the host's clocks of then
    vm.write(_CLOCK, bytes(clock))
    for part, number in _CHIPS.values():
        chip = bytearray(_bytes(state, part))
        chip[:4] = number.to_bytes(4, "little")
        vm.write(part, bytes(chip))


def _xsave(vm: Vm) -> Structure:
    """The floating-point state; its size depends on the host's processor."""
    size = vm.check_extension(c.KVM_CAP_XSAVE2)
    if size <= _XSAVE_BYTES:
        return Structure("xsave", _XSAVE_BYTES, c.KVM_GET_XSAVE, c.KVM_SET_XSAVE)
    return Structure("xsave", size, c.KVM_GET_XSAVE2, c.KVM_SET_XSAVE)


def _check_names(state: Mapping[str, bytes], known: Set[str]) -> None:
    if missing := known - state.keys():
        raise _mismatch(f"the part {min(missing)} is missing")
    if unknown := state.keys() - known:
        raise _mismatch(f"the part {shown(min(unknown))[:40]} means nothing here")


def _bytes(state: Mapping[str, bytes], part: Structure) -> bytes:
    data = state[part.name]
    if len(data) != part.size:
        raise _mismatch(f"the part {part.name} has {len(data)} bytes, this host's has {part.size}")
    return data


def _load_msrs(vcpu: Vcpu, saved: bytes, tsc: int) -> int:
    """Load the MSRs that differ: KVM refuses to write some even with the value that they have.

    Returns the TSC that was loaded, which is ``tsc`` unless that is 0.
    """
    values = dict(_MSR.iter_unpack(saved))
    present = dict(_MSR.iter_unpack(vcpu.renewed_msrs(saved)))
    if len(present) < len(values):
        present = vcpu.get_readable_msrs(values)
        missing = [index for index, value in values.items() if value and index not in present]
        if missing:
            raise _mismatch(f"this host's KVM has no MSR {missing[0]:#x}")
    deadline = values.pop(MSR_TSC_DEADLINE, None)
    counter = values.pop(MSR_TSC, None)
    wanted = [pair for pair in values.items() if present.get(pair[0], 0) != pair[1]]
    pages = MSR_KVM_ASYNC_PF_EN, values.get(MSR_KVM_ASYNC_PF_EN, 0)
    if pages[1] & 1 and pages not in wanted:
        # At each write KVM wakes the guest's tasks that wait for a page of the host: those of the
        # snapshot would wait for ever.
        wanted.append(pages)
    if counter is not None:
        # The counter first, so that the deadline is compared with the right time.
        first = [(MSR_TSC, tsc or counter)]
        if not tsc:
            tsc = counter
            # KVM takes a value within a second of the last one, 0 at first, for an attempt to
            # synchronise vCPUs, and keeps its own. So the first vCPU jumps far away before.
            first.insert(0, (MSR_TSC, tsc ^ _FAR))
        wanted[:0] = first
    if deadline is not None:
        # A timer that has fired leaves 0, and its interrupt may not have been delivered yet. A
        # deadline that has passed fires again; a guest expects that.
        wanted.append((MSR_TSC_DEADLINE, deadline or tsc))
    if wanted:
        vcpu.set_msr_list(wanted)
    # Some hosts give guests their own counter, which cannot be set.
    if tsc > present.get(MSR_TSC, 0) and _is_behind(vcpu, tsc):
        raise _mismatch("the host's time-stamp counter is behind the saved one")
    return tsc


def _is_behind(vcpu: Vcpu, tsc: int) -> bool:
    return vcpu.get_msrs([MSR_TSC])[MSR_TSC] + 1000 * vcpu.tsc_khz() < tsc


def _mismatch(reason: str) -> SnapshotError:
    return SnapshotError(
        f"this host cannot restore the snapshot's processor or chips: {reason}",
        "make a new snapshot on this host; a snapshot may not outlive a restart of its host",
    )
