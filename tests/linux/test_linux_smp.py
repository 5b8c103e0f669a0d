"""Linux uses two CPUs, with a kernel that supports them."""

from pathlib import Path

import pytest
from patience import linux_patience

import pykvm
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


READS = "fio --thread --filename=/dev/vda --direct=1 --rw=read --bs=4k --size=32k"


def test_two_cpus(tmp_path: Path) -> None:
    """Both come up, both get timer interrupts, and each has a queue of the disk."""
    path = tmp_path / "d.img"
    path.write_bytes(bytes(1 << 20))
    disk = pykvm.DiskConfig(path, num_queues=2)
    with pykvm.boot(
        "guest", kernel=NATIVE_KERNEL, cpus=2, disks=[disk], cold=True, timeout=linux_patience()
    ) as guest:
        assert guest.run("nproc").text == "2"
        ticks = guest.run("grep LOC: /proc/interrupts").text.split()[1:3]
        assert all(map(int, ticks))
        assert guest.run("cat /sys/block/vda/mq/*/cpu_list").text.split() == ["0", "1"]
        guest.run(f"{READS} --name=a --cpus_allowed=0 --name=b --cpus_allowed=1")
        (counts,) = guest.machine.statistics()["disks"]
    assert all(queue["rd_operations"] >= 8 for queue in counts["queues"])
