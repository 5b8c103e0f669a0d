"""The model of an installation, a boot and a database: the requests of the bare-metal guest."""

import pytest

from pykvm.bench.compare.stream import DISK_BLOCKS, STREAMS, Request


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_same_each_time_and_stays_on_the_disk(name: str):
    batches = [list(batch) for batch in STREAMS[name]()]
    assert batches == [list(batch) for batch in STREAMS[name]()]
    requests = [request for batch in batches for request in batch]
    assert all(0 <= request.block < DISK_BLOCKS for request in requests)
    assert all(0 < len(batch) <= 64 for batch in batches)
    assert {request.kind for request in requests} <= {"read", "write", "flush"}


@pytest.mark.parametrize("name", STREAMS)
def test_a_flush_is_alone(name: str):
    """A kernel sends it when the writes before it are done."""
    for batch in STREAMS[name]():
        assert Request("flush") not in batch or len(batch) == 1


def test_each_load_has_its_directions():
    kinds = {
        name: {request.kind for batch in stream() for request in batch}
        for name, stream in STREAMS.items()
    }
    assert kinds["install"] == {"read", "write", "flush"}
    assert kinds["fsync"] == {"write", "flush"}
    assert "read" in kinds["boot"]


def test_an_installation_reads_what_it_has_written():
    written = set()
    for batch in STREAMS["install"]():
        for request in batch:
            if request.kind == "write":
                written.add(request.block)
            elif request.kind == "read":
                assert request.block in written


def test_no_batch_writes_a_block_twice():
    for stream in STREAMS.values():
        for batch in stream():
            blocks = [request.block for request in batch if request.kind == "write"]
            assert len(blocks) == len(set(blocks))
