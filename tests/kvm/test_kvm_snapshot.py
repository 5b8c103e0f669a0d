"""A vCPU and its chips move from one VM to another."""

from contextlib import suppress
from random import Random
from struct import iter_unpack

import pytest

from pykvm.kvm import snapshot
from pykvm.kvm.constants import MSR_LSTAR, MSR_TSC
from pykvm.kvm.vcpu import Vcpu
from pykvm.snapshot.fields import SnapshotError

pytestmark = pytest.mark.kvm

# Again and again: inc rax; out 0x80, al.
COUNT = b"\x48\xff\xc0\xe6\x80\xeb\xf9"


def save(machine, vcpu: Vcpu) -> dict[str, bytes]:
    return snapshot.save_vcpu(vcpu, machine.vm, machine.kvm.msr_indices())


def load(machine, code: bytes, state: dict[str, bytes]) -> Vcpu:
    vcpu = machine.long_mode(b"\xf4")
    machine.ram.write(0x1000, code)
    snapshot.load_vcpu(vcpu, machine.vm, state)
    return vcpu


def msrs(state: dict[str, bytes]) -> dict[int, int]:
    return dict(iter_unpack("<I4xQ", state["msrs"]))


def test_a_vcpu_goes_on_in_another_vm(irqchip_machine, second_machine):
    first = irqchip_machine.long_mode(COUNT)
    assert [first.run().value for _ in range(3)] == [1, 2, 3]
    first.complete_io()
    second = load(second_machine, COUNT, save(irqchip_machine, first))
    assert [second.run().value for _ in range(3)] == [4, 5, 6]


def test_registers_of_every_kind_are_kept(irqchip_machine, second_machine):
    first = irqchip_machine.long_mode(COUNT)
    first.run()
    first.complete_io()
    first.set_msrs({MSR_LSTAR: 0xFFFF_8000_1234_5678})
    debug = first.get_debugregs()
    debug.db[2] = 0x4321
    first.set_debugregs(debug)
    before = save(irqchip_machine, first)
    after = save(second_machine, load(second_machine, COUNT, before))
    assert msrs(after)[MSR_LSTAR] == 0xFFFF_8000_1234_5678
    assert {name: after[name] for name in before if name != "msrs"} == {
        name: data for name, data in before.items() if name != "msrs"
    }


@pytest.mark.parametrize("seconds", [0.3, 3_000_000])
def test_the_tsc_goes_on_from_the_saved_moment(irqchip_machine, second_machine, seconds):
    """KVM keeps its own value where the new one is less than a second from the last."""
    first = irqchip_machine.long_mode(COUNT)
    tsc = int(1000 * first.tsc_khz() * seconds)
    first.set_msrs({MSR_TSC: tsc ^ 1 << 62})
    first.set_msrs({MSR_TSC: tsc})
    if not tsc <= first.get_msrs([MSR_TSC])[MSR_TSC] < 2 * tsc:
        pytest.skip("this host's KVM gives guests the host's own TSC")
    before = save(irqchip_machine, first)
    after = save(second_machine, load(second_machine, COUNT, before))
    assert tsc <= msrs(before)[MSR_TSC] <= msrs(after)[MSR_TSC] < 2 * tsc


def test_chips_are_kept(irqchip_machine, second_machine):
    for machine in (irqchip_machine, second_machine):
        machine.vm.create_pit2()
    irqchip_machine.vm.irq_line(5, True)
    before = snapshot.save_chips(irqchip_machine.vm)
    assert before["ioapic"] != snapshot.save_chips(second_machine.vm)["ioapic"]
    snapshot.load_chips(second_machine.vm, before)
    after = snapshot.save_chips(second_machine.vm)
    assert [after[name] for name in ("pic0", "pic1", "ioapic")] == [
        before[name] for name in ("pic0", "pic1", "ioapic")
    ]
    clocks = [int.from_bytes(state["clock"][:8], "little") for state in (before, after)]
    assert clocks == sorted(clocks)


@pytest.mark.parametrize("change", ["missing", "short", "long"])
@pytest.mark.parametrize("part", ["mp_state", "regs", "xsave", "lapic", "msrs", "events"])
def test_a_part_of_another_size_is_refused(irqchip_machine, second_machine, part, change):
    state = save(irqchip_machine, irqchip_machine.long_mode(COUNT))
    if change == "missing":
        del state[part]
    else:
        state[part] = state[part][:-1] if change == "short" else state[part] + b"\0"
    with pytest.raises(SnapshotError, match=part):
        load(second_machine, COUNT, state)


@pytest.mark.parametrize("seed", range(20))
def test_no_bytes_do_harm(irqchip_machine, second_machine, seed):
    """KVM takes them or refuses them, and the vCPU can be closed."""
    random = Random(seed)
    state = save(irqchip_machine, irqchip_machine.long_mode(COUNT))
    for part in random.sample(sorted(state), 3):
        data = bytearray(state[part])
        for _ in range(random.choice((1, 8, len(data)))):
            data[random.randrange(len(data))] = random.randrange(256)
        state[part] = bytes(data)
    with suppress(SnapshotError):
        load(second_machine, COUNT, state)
