"""Two CPUs at work in Linux, where there is a kernel that can use them."""

import pytest

from pykvm.machine.bundle import BUNDLED, BUNDLES

NATIVE_KERNEL = BUNDLES / BUNDLED / "vmlinux-native"

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.linux,
    pytest.mark.skipif(
        not NATIVE_KERNEL.exists(),
        reason="no SMP kernel here: 'guest/build.py --flavour all' builds one for any host",
    ),
]


def test_two_cpus(boot):
    """Both come up and both get timer interrupts."""
    script = "nproc; grep LOC: /proc/interrupts"
    done = boot("--kernel", str(NATIVE_KERNEL), "--cpus", "2", "--exec", script)
    lines = done.stdout.split(b"\n")
    assert lines[0] == b"2"
    ticks = [int(word) for word in lines[1].split()[1:3]]
    assert all(ticks)
