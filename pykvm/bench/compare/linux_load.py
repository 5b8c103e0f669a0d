"""The loads of a comparison in a Linux guest: an installation, a boot, and jobs of fio."""

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from pykvm.bench.compare.report import Sample
from pykvm.bench.fio.device import Reading, between
from pykvm.bench.fio.in_guest import prepare, reading, run_fio
from pykvm.devices.virtio_blk.observe.stats import CLASSIC
from pykvm.errors import PykvmError, shown
from pykvm.guest.guest import Guest

_ARCHIVE = "/tmp/pykvm-files.tar"
_SEED = 2014
_LIMIT = 600.0
_READ = """\
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vda /mnt
find /mnt -type f | xargs cat >/dev/null
umount /mnt
"""
_INSTALL = """\
set -e
mke2fs -q -F -t ext4 /dev/vda
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
tar xf {archive} -C /mnt
sync
i=0
while [ $i -lt {fsyncs} ]; do
  dd if=/dev/zero of=/mnt/log bs=4k count=1 seek=$i conv=notrunc,fsync 2>/dev/null
  i=$((i + 1))
done
umount /mnt
{read}"""
_BOOT = """\
set -e
mkdir -p /mnt
{read}"""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of an installation: its files, and its writes with fsync."""

    files: int
    fsyncs: int


SIZE, EMULATED_SIZE = Size(2000, 200), Size(24, 4)


def installation(guest: Guest, size: Size) -> Sample:
    """mke2fs, many small files, writes with fsync, and a cold read of all files."""
    guest.push(_archive(size.files), _ARCHIVE)
    return _timed(guest, _INSTALL.format(archive=_ARCHIVE, fsyncs=size.fsyncs, read=_READ))


def boot(guest: Guest, size: Size) -> Sample:
    """A cold read of all files that :func:`installation` has left on the disk."""
    return _timed(guest, _BOOT.format(read=_READ))


LOADS: Mapping[str, Callable[[Guest, Size], Sample]] = {"install": installation, "boot": boot}


def fio_load(
    guest: Guest, job: str, files: Mapping[str, bytes], *, write: bool, name: str
) -> Sample:
    """The jobs of a job file. FioFailed."""
    prepare(guest, job, files)
    done = run_fio(guest, None, may_write=write, name=name)
    longest: dict[int, float] = {}
    for one in done.output.jobs:
        seconds = one.requests / one.iops if one.iops else 0.0
        longest[one.group] = max(longest.get(one.group, 0.0), seconds)
    return _sample(sum(longest.values()), done.readings[0], done.readings[-1])


def _timed(guest: Guest, script: str) -> Sample:
    before = reading(guest)
    done = guest.run(script, check=False, timeout=_LIMIT)
    if done.status:
        words = shown(done.stderr.decode("utf-8", "replace").strip(), most=300)
        raise PykvmError(
            f"the load failed in the guest with status {done.status}: {words}",
            "look at the disk's size and options",
        )
    return _sample(done.seconds, before, reading(guest))


def _sample(seconds: float, before: Reading, after: Reading) -> Sample:
    counters = between(before, after).counters
    return Sample(seconds, {name: counters[name] for name in CLASSIC})


def _archive(files: int) -> bytes:
    """A tar archive of small files in folders, the same each time."""
    random, made = Random(_SEED), io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(files):
            member = tarfile.TarInfo(f"d{number // 50}/f{number}")
            member.size = 200 + int(random.expovariate(1 / 8000)) % 60_000
            archive.addfile(member, io.BytesIO(random.randbytes(member.size)))
    return made.getvalue()
