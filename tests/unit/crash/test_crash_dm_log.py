"""The format of dm-log-writes."""

import struct
from contextlib import suppress

import pytest
from crash_logs import SECTORS, random_log, sector_data
from hypothesis import given
from hypothesis import strategies as st
from test_crash_states import log_of

from pykvm.crash.dm_log import DmEntry, Flags, exported, imported, parsed
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog


def exported_bytes(log: WriteLog) -> bytes:
    return b"".join(exported(log))


@given(st.integers(0, 1 << 32))
def test_an_exported_log_is_read_back_in_its_order(seed):
    log = random_log(seed)
    entries = parsed(exported_bytes(log))
    assert entries[-1] == DmEntry(0, 0, Flags.MARK, b"end")
    ended = [e for e in log.entries if e.ended != NEVER]
    marks = [e.label.encode() for e in ended if e.kind is WriteKind.MARK]
    assert [e.data for e in entries[:-1] if Flags.MARK in e.flags] == marks
    flushes = [number for number, e in enumerate(entries) if e.flags == Flags.FLUSH]
    by_end = sorted((e for e in ended if e.kind is WriteKind.FLUSH), key=lambda e: e.ended)
    assert len(flushes) == len(by_end)
    written = [e for e in entries if e.sectors]
    assert len(written) == sum(bool(e.sectors) for e in ended)
    for place, flush in zip(flushes, by_end, strict=True):
        covered = {e.data for e in ended if e.kind is WriteKind.WRITE and e.ended < flush.sent}
        assert covered <= {e.data for e in entries[:place]}


def test_a_flush_of_one_write_makes_it_fua_and_a_flush_of_two_does_not():
    entries = parsed(exported_bytes(log_of((0, 1), "flush", (1, 1), (2, 1), "flush", "a mark")))
    assert [(e.sector, e.flags) for e in entries] == [
        (0, Flags.FUA),
        (0, Flags.FLUSH),
        (1, Flags(0)),
        (2, Flags(0)),
        (0, Flags.FLUSH),
        (0, Flags.MARK),
        (0, Flags.MARK),
    ]
    assert [e.data for e in entries[-2:]] == [b"a mark", b"end"]


def test_the_bytes_are_those_of_the_format():
    content = exported_bytes(log_of((3, 1)))
    assert content[:28] == struct.pack("<QQQI", 0x6A736677736872, 1, 2, 512)
    assert content[28:512] == bytes(484)
    assert content[512:544] == struct.pack("<QQQQ", 3, 1, 0, 0)
    assert content[544:1024] == bytes(480)
    assert content[1024:1536] == sector_data(0)
    assert content[1536:1571] == struct.pack("<QQQQ", 0, 0, 8, 3) + b"end"
    assert len(content) == 2048


def test_a_log_is_imported_as_it_was_exported():
    log = log_of((0, 2), (4, 1), "flush", "a mark", (1, 1), (2, 2), "flush")
    again = imported(exported_bytes(log), SECTORS)
    assert again.entries[:-1] == log.entries
    assert again.entries[-1].label == "end"


def test_discards_and_blocks_of_4096_bytes_are_read():
    header = struct.pack("<QQQI", 0x6A736677736872, 1, 2, 4096).ljust(4096, b"\0")
    discard = struct.pack("<QQQQ", 1, 1, 4, 0).ljust(4096, b"\0")
    write = struct.pack("<QQQQ", 0, 1, 3, 0).ljust(4096, b"\0") + sector_data(7) * 8
    log = imported(header + discard + write, SECTORS)
    assert [(e.kind, e.sector, e.sectors, e.durable) for e in log.entries] == [
        (WriteKind.DISCARD, 8, 8, False),
        (WriteKind.FLUSH, 0, 0, False),
        (WriteKind.WRITE, 0, 8, True),
    ]


def test_a_discard_is_exported_without_data():
    log = WriteLog(SECTORS, [Entry(WriteKind.DISCARD, 0, 1, sector=2, sectors=4)])
    assert parsed(exported_bytes(log))[0] == DmEntry(2, 4, Flags.DISCARD)


@given(st.integers(0, 1 << 32), st.data())
def test_a_damaged_file_is_refused_or_read_but_nothing_else(seed, data):
    content = bytearray(exported_bytes(random_log(seed)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    with suppress(ValueError):
        imported(bytes(content[:end]), SECTORS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too short"),
        (bytes(512), "not a dm-log-writes log"),
        (struct.pack("<QQQI", 0x6A736677736872, 2, 0, 512), "version is 2"),
        (struct.pack("<QQQI", 0x6A736677736872, 1, 0, 513), "block size is 513"),
        (struct.pack("<QQQI", 0x6A736677736872, 1, 1, 512), "ends before entry 0"),
    ],
)
def test_a_file_that_is_no_log_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        parsed(content)


def test_writes_of_the_same_sector_are_exported_in_the_order_of_the_model():
    first = Entry(WriteKind.WRITE, 0, 3, sector=0, sectors=1, data=sector_data(1))
    second = Entry(WriteKind.WRITE, 1, 2, sector=0, sectors=1, data=sector_data(2))
    flush = Entry(WriteKind.FLUSH, 4, 5, 4)
    for entries in ([first, second], [first, second, flush]):
        exported_entries = parsed(exported_bytes(WriteLog(SECTORS, entries)))
        assert [e.data for e in exported_entries[:2]] == [first.data, second.data]
