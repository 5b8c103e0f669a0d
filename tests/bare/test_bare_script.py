"""Encoding scripts and decoding results, without a guest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bare import (
    BlockDriver,
    BlockRequest,
    Chain,
    RecordError,
    Results,
    RunState,
    Script,
    ScriptError,
    Segment,
    filling,
    layout,
)
from pykvm.bare.arena import Arena


def operations(data: bytes) -> list[tuple[int, int, bytes]]:
    """(code, flags, rest) of each operation."""
    found = []
    while data:
        code, flags, size = layout.OP_HEADER.unpack(data)
        assert size % 8 == 0
        assert 8 <= size <= len(data)
        found.append((code, flags, data[8:size]))
        data = data[size:]
    return found


def results_of(records: list[tuple[int, int, bytes]], state: RunState = RunState.FINISHED):
    """Results as a guest would leave them: (code, error, data) per operation of vCPU 0."""
    body = b""
    for index, (code, error, data) in enumerate(records):
        padded = data + bytes(-len(data) % 8)
        size = layout.RECORD_HEADER.size + len(padded)
        header = layout.RECORD_HEADER.pack(code, error, size, index, len(data), 100, 150)
        body += header + padded
    used = layout.RESULTS_HEADER.size + len(body)
    head = layout.RESULTS_HEADER.pack(layout.RESULTS_MAGIC, state, used, len(records), 0, 0, 0, 0)
    memory = bytearray(layout.CPUS_MAX * layout.RESULTS_SIZE)
    memory[:used] = head + body
    return Results(lambda at, n: bytes(memory[at - layout.RESULTS_BASE :][:n]))


def test_a_script_is_a_header_and_padded_operations():
    script = Script()
    script.print(b"abc")
    script.counters()
    encoded = script.encode(tsc_khz=123)
    magic, size, khz = layout.SCRIPT_HEADER.unpack(encoded)
    assert (magic, size, khz) == (layout.SCRIPT_MAGIC, len(encoded), 123)
    (first, second) = operations(encoded[layout.SCRIPT_HEADER.size :])
    assert first == (layout.OpCode.PRINT, 0, b"\xf8\x03\0\0\x03\0\0\0abc" + bytes(5))
    assert second == (layout.OpCode.COUNTERS, 0, b"")


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_a_step_gives_the_result_that_the_guest_recorded(payloads: list[bytes]):
    script = Script()
    steps = [script.read_memory(0, len(data)) for data in payloads]
    results = results_of([(layout.OpCode.READ_MEMORY, 0, data) for data in payloads])
    assert [results[step] for step in steps] == payloads


def test_a_failed_operation_raises_only_when_its_result_is_read():
    script = Script()
    bad, good = script.reset(), script.sleep(1)
    results = results_of([(layout.OpCode.RESET, RecordError.TIMEOUT, bytes(8)), (23, 0, b"")])
    assert results[good] is None
    assert results.record(bad).error is RecordError.TIMEOUT
    assert results.whatever(bad) == 0
    assert results.record(bad).ticks == 50
    with pytest.raises(ScriptError, match=r"RESET\): TIMEOUT"):
        results[bad]


def test_an_operation_that_never_ran_is_an_error():
    script = Script()
    step = script.sleep(1)
    with pytest.raises(ScriptError, match="did not run"):
        results_of([], RunState.FAILED)[step]


def test_a_guest_that_wrote_no_results_has_none():
    results = Results(lambda at, n: bytes(n))
    assert {area.state for area in results.areas} == {RunState.NOT_STARTED}


@given(st.integers(1, 64), st.sampled_from([1, 2, 16, 4096]))
def test_arena_allocations_are_aligned_and_disjoint(size: int, align: int):
    arena = Arena()
    first, second = arena.allocate(size, align), arena.allocate(size, align)
    assert first % align == second % align == 0
    assert first + size <= second


def test_arena_ends():
    with pytest.raises(ValueError, match="arena"):
        Arena().allocate(layout.ARENA_SIZE + 1)


def test_filling_wraps_at_64_bits():
    assert filling(24, 2**64 - 1) == b"\xff" * 8 + bytes(8) + b"\x01" + bytes(7)


def test_a_chain_is_encoded_with_its_segments():
    chain = Chain(7, [Segment(0x1000, 16), Segment(0x2000, 512, True)], indirect=0x3000)
    assert layout.CHAIN.unpack(chain.encode()) == (0x3000, 7, 2)
    assert layout.SEGMENT.unpack(chain.encode()[32:]) == (0x2000, 512, 2)


def segments_of(request: BlockRequest) -> list[tuple[int, bool]]:
    """(length, device_writes) of each descriptor of ``request``."""
    batch = BlockDriver(Script()).submit([request])
    return [(s.length, s.device_writes) for s in batch.requests[0].chain.segments]


def test_a_request_is_header_data_and_status():
    assert segments_of(BlockRequest.read(0, 512)) == [(16, False), (512, True), (1, True)]
    assert segments_of(BlockRequest.write(0, bytes(512))) == [(16, False), (512, False), (1, True)]
    assert segments_of(BlockRequest.flush()) == [(16, False), (1, True)]


def test_a_request_can_be_cut_anywhere():
    write = BlockRequest.write(0, bytes(512)).laid_out(readable=[1, 0, 7, 20], writable=[])
    lengths = [(1, False), (0, False), (7, False), (20, False), (500, False), (1, True)]
    assert segments_of(write) == lengths
    with pytest.raises(ValueError, match="do not fit"):
        segments_of(BlockRequest.flush().laid_out(readable=[17]))


@given(st.lists(st.integers(0, 100), max_size=5), st.lists(st.integers(0, 100), max_size=5))
def test_cutting_loses_no_byte(readable: list[int], writable: list[int]):
    request = BlockRequest(1, data=bytes(500), length=510, readable=readable, writable=writable)
    lengths = segments_of(request)
    assert sum(n for n, writes in lengths if not writes) == 516
    assert sum(n for n, writes in lengths if writes) == 511
