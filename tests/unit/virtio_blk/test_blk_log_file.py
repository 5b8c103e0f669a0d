"""The file of a log of writes."""

import json

import pytest
from crash_logs import random_log
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import log_file
from pykvm.errors import UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "log"


@given(st.integers(0, 1 << 32))
def test_a_log_is_read_as_it_was_written(place, seed):
    log = random_log(seed)
    log_file.save(log, place)
    again = log_file.load(place)
    assert (again.entries, again.sectors, again.digest) == (log.entries, log.sectors, log.digest)


@given(st.integers(0, 1 << 32), st.data())
def test_a_damaged_file_is_read_or_refused_with_a_sentence(place, seed, data):
    log_file.save(random_log(seed), place)
    content = bytearray(place.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        log_file.load(place)
    except UsageError as error:
        assert "is not a log of writes" in error.message  # noqa: PT017


HEAD = {
    "format": log_file.FORMAT,
    "sectors": 8,
    "entries": [["flush", 0, 1, 0, 0, 0, 0, False, ""]],
}


@pytest.mark.parametrize(
    ("head", "data", "reason"),
    [
        ([], b"", "format is not"),
        (HEAD | {"format": 2}, b"", "format is not"),
        (HEAD | {"sectors": -1}, b"", "number"),
        (HEAD | {"sectors": True}, b"", "number"),
        (HEAD | {"entries": 3}, b"", "no entries"),
        (HEAD | {"entries": [3]}, b"", "different form"),
        (HEAD | {"entries": [["flush", 0, 1, 0, 0, 0, 0, 0, ""]]}, b"", "different form"),
        (HEAD | {"entries": [["sync", 0, 1, 0, 0, 0, 0, False, ""]]}, b"", "sync"),
        (HEAD | {"entries": [["flush", 1, 0, 0, 0, 0, 0, False, ""]]}, b"", "ends before"),
        (HEAD, b"x", "different size"),
        (HEAD | {"entries": [["write", 0, 1, 0, 0, 0, 1, False, ""]]}, b"x", "size"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path, head, data, reason):
    path = tmp_path / "log"
    path.write_bytes(json.dumps(head).encode() + b"\n" + data)
    with pytest.raises(UsageError, match=reason):
        log_file.load(path)


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UsageError, match="missing cannot be read: no such file"):
        log_file.load(tmp_path / "missing")
    with pytest.raises(UsageError, match="cannot be written: is a directory"):
        log_file.save(random_log(1), tmp_path)
