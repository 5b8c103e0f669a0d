"""Linux uses two CPUs, with a kernel that supports them."""

import json

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


READS = "fio --thread --filename=/dev/vda --direct=1 --rw=read --bs=4k --size=32k"


def test_two_cpus(boot, tmp_path):
    """Both come up, both get timer interrupts, and each has a queue of the disk."""
    image, stats = tmp_path / "d.img", tmp_path / "stats.json"
    image.write_bytes(bytes(1 << 20))
    script = f"""
        nproc; grep LOC: /proc/interrupts
        cat /sys/block/vda/mq/*/cpu_list
        {READS} --name=a --cpus_allowed=0 --name=b --cpus_allowed=1 >/dev/null
    """
    disk = ("--disk", f"{image},num-queues=2", "--stats", str(stats))
    done = boot("--kernel", str(NATIVE_KERNEL), "--cpus", "2", *disk, "--exec", script)
    lines = done.stdout.split(b"\n")
    assert lines[0] == b"2"
    ticks = [int(word) for word in lines[1].split()[1:3]]
    assert all(ticks)
    assert lines[2:4] == [b"0", b"1"]
    (counts,) = json.loads(stats.read_text())["disks"]
    assert all(queue["rd_operations"] >= 8 for queue in counts["queues"])
