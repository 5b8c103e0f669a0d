"""Option values: the accepted ones, and one clear sentence for each wrong one."""

import contextlib
import re
from pathlib import Path

import pytest
from checkout import ROOT
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.disk_keys import disk_help, parse_disk
from pykvm.cli.values import parse_count, parse_seconds, parse_size
from pykvm.devices.virtio_blk import (
    CacheMode,
    DetectZeroes,
    DiscardMode,
    EngineKind,
    ErrorPolicy,
    ImageFormat,
    Locking,
    MergePolicy,
    RateLimits,
)
from pykvm.devices.virtio_blk.layers.faults import Fault
from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import UsageError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 * MIB),
        ("64", 64 * MIB),
        ("1G", 1024 * MIB),
        ("512k", MIB // 2),
        ("2GiB", 2 << 30),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "64X", "1.5G", "M", "0x10", "64B", "\uff16\uff14", "1\u212a"]
)
def test_not_a_size(text):
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "-3", "two", "1.0", ""])
def test_not_a_count(text):
    with pytest.raises(UsageError):
        parse_count(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", ""])
def test_not_a_time(text):
    with pytest.raises(UsageError):
        parse_seconds(text)


def test_disk():
    disk = parse_disk("a,,b.img,readonly=on,serial=S1")
    assert (disk.path, disk.readonly, disk.serial) == (Path("a,b.img"), True, "S1")


def test_a_disk_with_nothing_but_a_path_has_the_defaults():
    assert parse_disk("d.img") == DiskConfig(Path("d.img"))


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("readonly=off", "readonly", False),
        ("serial=a,,b", "serial", "a,b"),
        ("format=raw", "format", ImageFormat.RAW),
        ("locking=off", "locking", Locking.OFF),
        ("cache=directsync", "cache", CacheMode.DIRECTSYNC),
        ("engine=io_uring", "engine", EngineKind.IO_URING),
        ("merge=sorted-batch", "merge", MergePolicy.SORTED_BATCH),
        ("merge-max=1024", "merge_max", 1024),
        ("num-queues=64", "num_queues", 64),
        ("queues=2", "num_queues", 2),
        ("cpu-affinity=0", "cpu_affinity", {0}),
        ("cpu-affinity=7+0-2+2-3", "cpu_affinity", {0, 1, 2, 3, 7}),
        ("cpu-affinity=0,,2", "cpu_affinity", {0, 2}),
        ("seg-max=1", "seg_max", 1),
        ("seg-max=65535", "seg_max", 65535),
        ("seg-max=off", "seg_max", None),
        ("discard=ignore", "discard", DiscardMode.IGNORE),
        ("write-zeroes=off", "write_zeroes", False),
        ("detect-zeroes=unmap", "detect_zeroes", DetectZeroes.UNMAP),
        ("logical_block_size=4K", "logical_block_size", 4096),
        ("physical-block-size=4096", "physical_block_size", 4096),
        ("min_io_size=0", "min_io_size", 0),
        ("lifetime=3:11:0", "lifetime", (3, 11, 0)),
        ("size-max=512", "size_max", 512),
        ("size-max=4K", "size_max", 4096),
        ("size-max=4294967295", "size_max", (1 << 32) - 1),
        ("rerror=stop", "rerror", ErrorPolicy.STOP),
        ("werror=ignore", "werror", ErrorPolicy.IGNORE),
    ],
)
def test_each_key_sets_its_field_and_no_other(option, field, value):
    assert parse_disk(f"d.img,{option}") == DiskConfig(Path("d.img"), **{field: value})


def test_faults_come_from_a_file(tmp_path):
    path = tmp_path / "a,b.toml"
    path.write_text('[[fault]]\nerrno = "EIO"')
    disk = parse_disk(f"d.img,faults={str(path).replace(',', ',,')}")
    assert [rule.fault for rule in disk.faults.rules] == [Fault(errno="EIO")]
    path.write_text('[[fault]]\nerror = "EIO"')
    with pytest.raises(UsageError, match="fault 1: there is no key 'error'"):
        parse_disk(f"d.img,faults={str(path).replace(',', ',,')}")
    with pytest.raises(UsageError, match="'faults' needs a file"):
        parse_disk("d.img,faults=")


def test_every_value_of_a_choice_is_accepted():
    for key, kind in (("cache", CacheMode), ("merge", MergePolicy), ("rerror", ErrorPolicy)):
        for member in kind:
            assert getattr(parse_disk(f"d.img,{key}={member.value}"), key) is member


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs a path"),
        ("d.img,readnly=on", "did you mean 'readonly'"),
        ("d.img,request-merging=off", "no option 'request-merging'"),
        ("d.img,colour=red", "--disk help lists"),
        ("d.img,", "no option ''"),
        ("d.img,format=qcow2", "format cannot be 'qcow2'; convert the image with qemu-img convert"),
        ("d.img,readonly", "needs a value; write readonly=on|off"),
        ("d.img,readonly=yes", "neither on nor off"),
        ("d.img,serial=a,serial=b", "twice"),
        ("d.img,cache=fast", "use writeback, writethrough, none, directsync or unsafe"),
        ("d.img,engine=uring", "use auto, sync, threads or io_uring"),
        ("d.img,merge=on", "merge cannot be 'on'; use sequential, sorted, sorted-batch or off"),
        ("d.img,rerror=", "use report, ignore, stop or enospc"),
        ("d.img,werror=STOP", "werror cannot be 'STOP'"),
        ("d.img,merge-max=0", "merge-max cannot be '0'; use 1 to 1024"),
        ("d.img,merge-max=1025", "use 1 to 1024"),
        ("d.img,merge-max=1K", "use 1 to 1024"),
        ("d.img,seg-max=0", "use 1 to 65535"),
        ("d.img,discard=on", "use unmap, ignore or off"),
        ("d.img,detect-zeroes=unmap,discard=ignore", "use detect-zeroes=on, or discard=unmap"),
        ("d.img,logical-block-size=4097", "use 512 to 4096"),
        ("d.img,cyls=3,secs=63", "a geometry needs cyls, heads and secs; give all three or none"),
        ("d.img,lifetime=1:2", "lifetime cannot be '1:2'; use three numbers, 0 to 3, 0 to 11 and"),
        ("d.img,lifetime=1:2:x", "0 to 11 and 0 to 11, like lifetime=1:2:3"),
        ("d.img,lifetime=1:2:12", "lifetime cannot be '1:2:12'"),
        ("d.img,iops-size=4K", "iops-size has no effect without iops"),
        ("d.img,bps=1X", "bytes; a suffix K, M, G or T is allowed"),
        ("d.img,queue-size=100", "use a power of 2"),
        ("d.img,queue_size=2", "use 4 to 1024"),
        ("d.img,num_queues=65", "use 1 to 64"),
        ("d.img,queues=2,num-queues=2", "twice"),
        ("d.img,iothreads=0", "use 1 to 64"),
        ("d.img,iothreads=2", "2 threads cannot serve one queue"),
        ("d.img,cpu-affinity=", "'' is not a list of CPUs; write it like 0 or 0+2-3"),
        ("d.img,cpu-affinity=2-1", "'2-1' is not a list of CPUs"),
        ("d.img,cpu-affinity=8192", "not a list of CPUs"),
        ("d.img,cpu-affinity=0-", "not a list of CPUs"),
        ("d.img,cpu-affinity=0++1", "not a list of CPUs"),
        ("d.img,seg-max=65536", "use 1 to 65535"),
        ("d.img,size-max=511", "use 512 to 4294967295"),
        ("d.img,size-max=4G", "use 512 to 4294967295"),
        ("d.img,size-max=-1", "use 512 to 4294967295"),
    ],
)
def test_bad_disks(text, says):
    with pytest.raises(UsageError) as caught:
        parse_disk(text)
    assert says in str(caught.value)


def test_the_help_lists_every_key_with_its_values():
    text = disk_help()
    for key in ("readonly", "serial", "merge-max", "seg-max", "size-max", "werror"):
        assert f"  {key}=" in text
    assert "cache=writeback|writethrough|none|directsync|unsafe\n" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_every_field_of_a_disk_has_a_key_and_every_key_is_documented():
    keys = re.findall(r"^  ([a-z-]+)=", disk_help(), re.MULTILINE)
    fields = {*vars(DiskConfig(Path("d"))), *vars(RateLimits())} - {"path", "blank", "limits"}
    assert {key.replace("-", "_") for key in keys} == fields
    text = (ROOT / "docs/reference/disk-options.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z-]+)`", text.split("## What")[0], re.MULTILINE) == keys


@given(st.text())
def test_any_text_is_a_value_or_a_usage_error(text):
    for parse in (parse_size, parse_count, parse_seconds, parse_disk):
        with contextlib.suppress(UsageError):
            parse(text)


@given(
    st.lists(
        st.tuples(st.sampled_from(["merge", "merge-max", "size-max", "cpu-affinity"]), st.text())
    )
)
def test_any_value_of_a_key_is_accepted_or_a_usage_error(options):
    with contextlib.suppress(UsageError):
        parse_disk(",".join(["d.img", *(f"{key}={value}" for key, value in options)]))


def test_rate_limits():
    disk = parse_disk("d,iops=100,iops_rd_max=7,iops-rd=5,bps-wr=10M,iops_size=4k")
    expected = RateLimits(iops=100, iops_rd=5, iops_rd_max=7, bps_wr=10 * MIB, iops_size=4096)
    assert disk.limits == expected
    assert not parse_disk("d").limits
    with pytest.raises(UsageError, match="bps-max has no effect without bps"):
        parse_disk("d,bps-max=1M")
