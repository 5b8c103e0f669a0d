"""One ring of io_uring: each submission is answered once."""

import pytest
from blk_engines import PATIENCE_MS
from blk_operations import readable

from pykvm.host import io_uring
from pykvm.host.io_uring import Ring

NOP = 0
PROBLEM = io_uring.problem()

pytestmark = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM or "-")


def take_all(ring: Ring) -> list[int]:
    """The tags of all completions, which must have succeeded."""
    tags = []
    for _ in range(ring.completed()):
        tags.append(ring.take())
        assert ring.result == 0
    return tags


def test_a_ring_answers_each_submission_once_and_in_any_number() -> None:
    """Around the queues' ends, hundreds of times."""
    ring = Ring(8)
    tag = 0
    for count in [1, 3, 8, 5, 7, 2] * 50:
        tags = list(range(tag, tag + count))
        for tag in tags:
            ring.prepare(NOP, 0, 0, 0, 0, 0, tag)
        ring.submit()
        assert ring.pending == 0
        assert readable(ring.fd)
        assert take_all(ring) == tags
        assert not readable(ring.fd)
        assert take_all(ring) == []
        tag += 1
    ring.close()


def test_more_completions_than_the_queue_holds_are_not_lost() -> None:
    ring = Ring(4)
    for tag in range(40):
        ring.prepare(NOP, 0, 0, 0, 0, 0, tag)
        if ring.pending == 4:
            ring.submit()
    found: list[int] = []
    while readable(ring.fd):
        found += take_all(ring)
    while ring.pending:
        ring.submit()
        found += take_all(ring)
    assert sorted(found) == list(range(40))
    ring.close()


def test_withdrawn_submissions_are_not_executed() -> None:
    ring = Ring(4)
    for tag in (7, 8, 9):
        ring.prepare(NOP, 0, 0, 0, 0, 0, tag)
    assert sorted(ring.take_back()) == [7, 8, 9]
    ring.submit()
    assert not readable(ring.fd)
    ring.prepare(NOP, 0, 0, 0, 0, 0, 10)
    ring.submit()
    assert readable(ring.fd, PATIENCE_MS)
    assert take_all(ring) == [10]
    ring.close()
