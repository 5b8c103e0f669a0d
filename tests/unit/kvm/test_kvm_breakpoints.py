"""A vCPU behind an INT3 may have an exception that KVM does not report."""

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.kvm.breakpoints import may_hide_breakpoint
from pykvm.memory import Ram

CODE = 0x5000
BP, PF = 3, 14


def vcpu(*, vector: int = BP, rip: int = CODE + 1, cr3: int = 0x1000) -> Any:
    return SimpleNamespace(
        events=SimpleNamespace(exception=SimpleNamespace(nr=vector)),
        sregs=SimpleNamespace(cr0=1 << 16, cr3=cr3, cr4=0),
        regs=SimpleNamespace(rip=rip),
    )


@pytest.fixture
def ram() -> Ram:
    """RAM in which the first 2 MiB map themselves, with an INT3 at CODE."""
    made = Ram.flat(0x10000)
    for table in (0x1000, 0x2000):
        made.u64[table >> 3] = table + 0x1000 | 7
    made.u64[0x3000 >> 3] = 0x87
    made.write(CODE, b"\xcc\x90")
    return made


def test_a_vcpu_right_behind_int3_may_have_one(ram: Ram):
    assert may_hide_breakpoint(vcpu(), ram)


@pytest.mark.parametrize(
    "other",
    [
        {"vector": PF},
        {"rip": CODE},
        {"rip": CODE + 2},
        {"rip": 0},
        {"rip": 1 << 40},
        {"rip": 0x20_0000},
        {"rip": 0x1F_FFFF},
        {"cr3": 1 << 40},
    ],
    ids=str,
)
def test_no_other_vcpu_has_one(ram: Ram, other: dict[str, int]):
    assert not may_hide_breakpoint(vcpu(**other), ram)
