"""A disk that stops at an error: the requests that it keeps, and its resume."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_bench import SECTORS, EngineScript, Faults, Maker, Short, fill, sector_of, stopping_benches
from patience import ends, goes_on, in_thread, until

from pykvm.devices.virtio_blk import (
    ErrorAction,
    ErrorPolicy,
    IoError,
    MergePolicy,
)
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
FULL = errno.ENOSPC


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path, packed: bool) -> Iterator[Maker]:
    with stopping_benches(path, packed=packed) as maker:
        yield maker


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("slow", [False, True])
def test_resume_tries_again_as_often_as_it_takes(
    make: Maker, path: Path, times: int, slow: bool
) -> None:
    script = EngineScript(Faults({("write", 5): [FULL] * times}), slow=slow)
    bench = make(script)
    head = bench.write(5, fill("n"))
    bench.kick()
    for failure in range(1, times + 1):
        if slow:
            script.wait_for(1)
            script.release()
        bench.wait_errors(failure)
        bench.device.pause()
        assert bench.answered() == []
        assert script.take_log() == [("write", 5, 1)]
        assert sector_of(path, 5) == fill("o")
        bench.device.resume()
    if slow:
        script.wait_for(1)
        script.release()
    assert bench.wait(head) == (OK, b"")
    assert bench.errors == [IoError("write", 5, 512, FULL, ErrorAction.STOP)] * times
    assert bench.stats() == {"wr_operations": 1, "wr_bytes": 512}
    assert sector_of(path, 5) == fill("n")
    assert bench.answered() == []


def test_failed_and_waiting_requests_start_in_ring_order(make: Maker, path: Path) -> None:
    """Overlapping writes, reads between them and a flush: as the driver queued them."""
    bench = make(EngineScript(Faults({("write", 0): [FULL]})))
    heads = [
        bench.write(0, fill("a")),
        bench.read(0),
        bench.write(0, fill("b") * 2),
        bench.read(9),
        bench.flush(),
        bench.write(1, fill("c")),
        bench.read(0, 2),
    ]
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    # The independent read was in flight at the same time, and is answered.
    assert bench.answered() == [heads[3]]
    assert sorted(bench.script.take_log()) == [("read", 9, 1), ("write", 0, 1)]
    bench.device.resume()
    answers = [bench.wait(head) for head in heads if head != heads[3]]
    assert [status for status, _ in answers] == [OK] * 6
    assert answers[1][1] == fill("a")
    assert answers[-1][1] == fill("b") + fill("c")
    log = bench.script.take_log()
    # The flush waits for the writes before it; everything else stands in each other's way.
    assert log.index(("flush", 0, 0)) > log.index(("write", 0, 2))
    log.remove(("flush", 0, 0))
    assert log == [
        ("write", 0, 1),
        ("read", 0, 1),
        ("write", 0, 2),
        ("write", 1, 1),
        ("read", 0, 2),
    ]
    assert path.read_bytes()[:1024] == fill("b") + fill("c")


def test_a_kept_flush_comes_after_the_writes_before_it(make: Maker) -> None:
    script = EngineScript(Faults({("write", 3): [FULL, FULL], ("flush", 0): [FULL]}))
    bench = make(script)
    heads = [bench.write(1, fill("n")), bench.write(3, fill("n")), bench.flush(), bench.flush()]
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    assert bench.answered() == [heads[0]]
    assert script.take_log() == [("write", 1, 1), ("write", 3, 1)]
    bench.device.resume()
    bench.wait_errors(2)
    bench.device.pause()
    assert script.take_log() == [("write", 3, 1)]
    bench.device.resume()
    bench.wait_errors(3)
    bench.device.pause()
    assert bench.answered() == [heads[1]]
    assert script.take_log() == [("write", 3, 1), ("flush", 0, 0)]
    bench.device.resume()
    assert [bench.wait(head)[0] for head in heads] == [OK] * 4
    assert script.take_log() == [("flush", 0, 0)] * 2
    assert [error.operation for error in bench.errors] == ["write", "write", "flush"]
    assert bench.stats() == {"wr_operations": 2, "wr_bytes": 1024, "flush_operations": 2}


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_merged_run_in_which_several_failed(make: Maker, path: Path, kind: str) -> None:
    """Only the guilty are kept; they start again through the planner, and may merge again."""
    bad: dict[tuple[str, int], list[int | Short]] = {(kind, s): [FULL, FULL] for s in (2, 5, 6)}
    bench = make(EngineScript(Faults(bad)), merge=MergePolicy.SEQUENTIAL)
    letters = "abcdefgh"
    heads = [
        bench.read(s) if kind == "read" else bench.write(s, fill(letters[s])) for s in range(8)
    ]
    heads.append(bench.flush())
    bench.kick()
    assert sorted(error.sector for error in bench.wait_errors(3)) == [2, 5, 6]
    bench.device.pause()
    good = {heads[s] for s in (0, 1, 3, 4, 7)} | ({heads[8]} if kind == "read" else set())
    assert set(bench.answered()) == good
    log = [entry for entry in bench.script.take_log() if entry[0] == kind]
    assert log == [(kind, 0, 8), *((kind, s, 1) for s in range(8))]
    bench.device.resume()
    assert bench.wait_errors(4)[3].sector == 2
    bench.device.pause()
    # Made one again, 5 and 6 failed together; halted by 2, they are not tried one by one.
    assert bench.script.take_log() == [(kind, 2, 1), (kind, 5, 2)]
    bench.device.resume()
    assert sorted(error.sector for error in bench.wait_errors(6)[4:]) == [5, 6]
    bench.device.pause()
    log = [(kind, 2, 1), (kind, 5, 2), (kind, 5, 1), (kind, 6, 1)]
    assert bench.script.take_log() == log
    bench.device.resume()
    assert [bench.wait(head)[0] for head in heads] == [OK] * 9
    log = [(kind, 5, 2)] if kind == "read" else [(kind, 5, 2), ("flush", 0, 0)]
    assert bench.script.take_log() == log
    name = "rd" if kind == "read" else "wr"
    assert bench.stats() == {
        f"{name}_operations": 8,
        f"{name}_bytes": 4096,
        f"{name}_merged": 7,  # once, however often it was planned
        "flush_operations": 1,
    }
    if kind == "write":
        assert path.read_bytes()[:4096] == b"".join(map(fill, letters))


def test_a_request_in_pieces_is_done_again_in_full(make: Maker, path: Path) -> None:
    script = EngineScript(Faults({("write", 1): [Short(512), FULL]}))
    bench = make(script)
    head = bench.write(0, fill("a") + fill("b") + fill("c"))
    bench.kick()
    assert bench.wait_errors(1) == [IoError("write", 0, 1536, FULL, ErrorAction.STOP)]
    bench.device.pause()
    bench.device.resume()
    assert bench.wait(head)[0] == OK
    assert script.log == [("write", 0, 3), ("write", 1, 2), ("write", 0, 3)]
    assert path.read_bytes()[:1536] == fill("a") + fill("b") + fill("c")


def test_a_retry_may_get_a_different_answer(make: Maker) -> None:
    """A failure that the policy reports, at the second try of a request that stopped the disk."""
    script = EngineScript(Faults({("write", 5): [FULL, errno.EIO]}))
    bench = make(script, werror=ErrorPolicy.ENOSPC)
    head = bench.write(5, fill("n"))
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    bench.device.resume()
    assert bench.wait(head)[0] == IOERR
    assert [error.action for error in bench.errors] == [ErrorAction.STOP, ErrorAction.REPORT]
    assert bench.stats() == {"failed_wr_operations": 1}


def test_requests_during_a_halt_wait_in_the_ring(make: Maker) -> None:
    """Their kick is not lost, and the kept request goes first."""
    bench = make(EngineScript(Faults({("write", 5): [FULL]})))
    kept = bench.write(5, fill("n"))
    bench.kick()
    bench.wait_errors(1)
    later = bench.read(5)
    bench.kick()
    bench.device.pause()
    assert bench.script.take_log() == [("write", 5, 1)]
    bench.kick()
    bench.device.resume()
    # No kick from here on: transport.wait() would only send one for something new.
    assert bench.wait(kept)[0] == OK
    assert bench.wait(later)[0] == OK
    assert bench.script.take_log() == [("write", 5, 1), ("read", 5, 1)]


def test_the_disk_halts_before_its_owner_acts(make: Maker) -> None:
    """Before its owner has had the time to stop the guest."""
    bench = make(EngineScript(Faults({("write", 5): [FULL]})))

    def announce(error: IoError) -> None:
        # The last moment before it halts: nothing of this may start.
        bench.read(7)
        bench.kick()
        bench.note(error)

    bench.on_error = announce
    bench.write(5, fill("n"))
    bench.kick()
    bench.wait_errors(1)
    assert goes_on(bench.io_thread)
    assert bench.script.log == [("write", 5, 1)]
    assert bench.answered() == []


def test_a_resume_right_after_the_report_counts(make: Maker) -> None:
    """The owner may act on a report at once, while the disk is still halting."""
    bench = make(EngineScript(Faults({("write", 5): [FULL, FULL]})))

    def announce(error: IoError) -> None:
        assert ends(in_thread(bench.device.resume))
        bench.note(error)

    bench.on_error = announce
    head = bench.write(5, fill("n"))
    bench.kick()
    assert bench.wait(head)[0] == OK
    assert len(bench.errors) == 2


@pytest.mark.parametrize("merge", list(MergePolicy))
def test_closing_while_stopped_answers_no_kept_request(
    make: Maker, path: Path, merge: MergePolicy
) -> None:
    """The file holds every answered write. The guest has no answer to the other writes."""
    bench = make(EngineScript(Faults({("write", 6): [FULL]})), merge=merge)
    heads = {bench.write(s, fill("n")): s for s in (4, 5, 6, 7)}
    flush = bench.flush()
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    late = bench.write(20, fill("n"))
    bench.kick()
    bench.device.close()
    told = bench.answered()
    assert flush not in told
    assert late not in told
    assert {heads[head] for head in told} == {4, 5, 7}
    expected = bytearray(b"o" * 512 * SECTORS)
    for head in told:
        assert bench.transport.drivers[0].response(head)[-1] == OK
        expected[heads[head] * 512 : heads[head] * 512 + 512] = fill("n")
    assert path.read_bytes() == expected
    assert bench.script.log.count(("write", 6, 1)) == 1


def test_a_disk_holds_off_resumes_from_its_halt_until_its_report(make: Maker) -> None:
    log: list[str] = []

    def halting() -> bool:
        return bench.device._threads._threads[0]._halting

    class Telling:
        def __enter__(self) -> None:
            log.append(f"held, halting: {halting()}")

        def __exit__(self, *exc: object) -> None:
            log.append("released")

    def on_error(error: IoError) -> None:
        log.append(f"told, halting: {halting()}")

    bench = make(EngineScript(Faults({("write", 5): [FULL]})), telling=Telling(), on_error=on_error)
    bench.write(5, fill("n"))
    bench.kick()
    until(lambda: "released" in log)
    assert log == ["held, halting: False", "told, halting: True", "released"]
