"""Option values: what is accepted, and one clear sentence for what is not."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.values import parse_count, parse_disk, parse_seconds, parse_size
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


@pytest.mark.parametrize("text", ["", "0", "-1", "64X", "1.5G", "M", "0x10", "\uff16\uff14"])
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
    assert not parse_disk("d.img").readonly


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs a path"),
        ("d.img,readnly=on", "did you mean 'readonly'"),
        ("d.img,readonly", "needs a value"),
        ("d.img,readonly=yes", "neither on nor off"),
        ("d.img,serial=a,serial=b", "twice"),
    ],
)
def test_bad_disks(text, says):
    with pytest.raises(UsageError, match=says):
        parse_disk(text)


@given(st.text())
def test_any_text_is_a_value_or_a_usage_error(text):
    for parse in (parse_size, parse_count, parse_seconds, parse_disk):
        with contextlib.suppress(UsageError):
            parse(text)
