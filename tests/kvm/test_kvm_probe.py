"""The probe: on this host, and on hosts that it is told about."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.kvm import probe as probe_module
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import Exit, InternalError, IoExit, Shutdown
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.probe import _code, _steps, probe
from pykvm.kvm.system import Kvm
from pykvm.lean.records import replace

OUT: Any = IoExit(True, 0x80, 1, 1, b"\0", None, 0)  # type: ignore[arg-type]
REFUSED = InternalError(1, b"\x9b\xe6\x80", ())
POPCNT = 1 << 23


@pytest.mark.kvm
def test_probe_agrees_with_the_features_of_the_processor():
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    with Kvm.open() as kvm:
        traits = probe(kvm, measure=True)
        again = probe(kvm)
    # Without either, what stands behind /dev/kvm can only be software.
    hardware = "vmx" in flags or "svm" in flags
    assert traits.needs_assists is not hardware
    assert traits.slow_cpl0 is not hardware
    assert again == replace(traits, cpl0_mips=None)


@pytest.mark.kvm
def test_a_probe_that_hangs_is_ended(monkeypatch):
    endless = b"\xeb\xfe"
    monkeypatch.setattr(probe_module, "_code", lambda rounds: (endless, 0))
    with Kvm.open() as kvm, pytest.raises(KvmError, match="did not finish"):
        probe(kvm, timeout=0.1)


def play(exits: list[Exit], *, rounds: int = 0, ecx: int = 0, cs: int = 0x08) -> HostTraits:
    """The probe's answer for ``exits`` of a vCPU that shows ``ecx`` and ``cs``."""
    changes: list[int] = []
    vcpu: Any = SimpleNamespace(
        regs=SimpleNamespace(rcx=ecx, rip=0x1000),
        sregs=SimpleNamespace(cs=SimpleNamespace(selector=cs)),
        changed=changes.append,
    )
    steps = _steps(vcpu, rounds)
    next(steps)
    for reason in exits[:-1]:
        steps.send(reason)
    with pytest.raises(StopIteration) as end:
        steps.send(exits[-1])
    traits: HostTraits = end.value.value
    assert bool(changes) is not traits.instructions_complete
    return traits


# The first OUT, CPUID, FWAIT, and the one behind SYSCALL.
USUAL = [OUT] * 4


def test_an_ordinary_host_needs_nothing():
    traits = play(USUAL)
    assert traits.cpl0_mips is None
    assert traits.reasons == []
    assert not traits.needs_assists
    assert traits.syscall_works
    assert traits.cpuid_masked
    assert traits.instructions_complete


@pytest.mark.parametrize(
    ("exits", "shown", "trait"),
    [
        (USUAL, {"cs": 0x23}, "syscall_works"),
        ([*USUAL[:-1], Shutdown()], {}, "syscall_works"),
        (USUAL, {"ecx": POPCNT}, "cpuid_masked"),
        ([*USUAL[:-2], REFUSED, *USUAL[-2:]], {}, "instructions_complete"),
    ],
)
def test_each_oddity_is_noticed(exits, shown, trait):
    traits = play(exits, **shown)
    assert not getattr(traits, trait)
    assert traits.needs_assists
    assert len(traits.reasons) == 1


def test_kvm_that_cannot_run_kernel_code_is_an_error():
    steps = _steps(SimpleNamespace(), 0)  # type: ignore[arg-type]
    next(steps)
    with pytest.raises(KvmError, match="simplest kernel code"):
        steps.send(Shutdown())


def test_a_slow_host_needs_no_assists():
    traits = HostTraits(cpl0_mips=4.0)
    assert traits.slow_cpl0
    assert not traits.needs_assists
    assert not HostTraits(cpl0_mips=300.0).slow_cpl0


def test_speed_is_measured_only_if_asked_for():
    # The time is that of the exits, which is almost 0 here.
    assert play([OUT, *[OUT] * 2 * 3, *USUAL[1:]], rounds=3).cpl0_mips


@pytest.mark.parametrize("rounds", [0, 3])
def test_every_step_of_the_guest_is_an_exit(rounds):
    code, syscall = _code(rounds)
    assert code.count(b"\xe6\x80") == len(USUAL) + 2 * rounds
    assert code[syscall : syscall + 2] == b"\x0f\x05"
