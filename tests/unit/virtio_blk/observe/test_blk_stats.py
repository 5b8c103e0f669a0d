"""The statistics of a disk: each request counts once, regardless of its execution.

Requests of one ``kick`` are found in one drain, so the merging is exact.
"""

import errno

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, Short, fill

from pykvm.devices.virtio_blk import ErrorPolicy, MergePolicy, Stats
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.image import file
from pykvm.devices.virtio_blk.observe import stats
from pykvm.devices.virtio_blk.observe.stats import classic_line

OK, IOERR, UNSUPP = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP
EIO = errno.EIO
STOP = ErrorPolicy.STOP


def reads(bench: Bench, sectors: range) -> list[int]:
    return [bench.read(sector) for sector in sectors]


def statuses(bench: Bench, heads: list[int]) -> list[int]:
    bench.kick()
    return [bench.wait(head)[0] for head in heads]


# -- operations, bytes, times ------------------------------------------------------


def test_each_kind_of_request_has_its_counters(make: Maker) -> None:
    bench = make(EngineScript())
    heads = [bench.read(0, 3), bench.write(9, fill("a") * 2), bench.flush()]
    assert statuses(bench, heads) == [OK] * 3
    assert bench.stats() == {
        "rd_operations": 1,
        "rd_bytes": 3 * 512,
        "wr_operations": 1,
        "wr_bytes": 2 * 512,
        "flush_operations": 1,
    }
    counts = bench.device.stats.as_dict()
    for kind in ("rd", "wr", "flush"):
        assert counts[f"{kind}_total_time_ns"] > 0


def test_get_id_does_not_count(make: Maker) -> None:
    bench = make(EngineScript(), serial="x")
    assert statuses(bench, [bench.send(VIRTIO_BLK_T_GET_ID, size=20)]) == [OK]
    assert bench.stats() == {}


def test_a_request_without_data_is_an_operation(make: Maker) -> None:
    bench = make(EngineScript())
    heads = [bench.send(VIRTIO_BLK_T_IN), bench.send(VIRTIO_BLK_T_OUT)]
    assert statuses(bench, heads) == [OK] * 2
    assert bench.stats() == {"rd_operations": 1, "wr_operations": 1}


def test_times_are_of_requests_not_of_operations(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two merged reads that take 5 ns each took 10 ns, although they took them together."""
    script = EngineScript(slow=True)
    monkeypatch.setattr("blk_bench.monotonic_ns", lambda: 1005)
    monkeypatch.setattr("time.monotonic_ns", lambda: 1000)
    bench = make(script)
    heads = reads(bench, range(2))
    bench.kick()
    script.wait_for(1)
    script.release()
    assert [bench.wait(head)[0] for head in heads] == [OK] * 2
    assert bench.device.stats.as_dict()["rd_total_time_ns"] == 10


def test_a_read_in_two_pieces_is_one_operation(make: Maker) -> None:
    """The host moved less than it was asked for, and the rest in a second attempt."""
    bench = make(EngineScript(Faults({("read", 0): [Short(700)]})))
    assert statuses(bench, [bench.read(0, 4)]) == [OK]
    assert len(bench.script.take_log()) == 2
    assert bench.stats() == {"rd_operations": 1, "rd_bytes": 4 * 512}


@pytest.mark.parametrize(
    ("fails", "status", "counts"),
    [
        ({}, OK, {"wr_operations": 1, "wr_bytes": 8 * 512}),
        ({("write", 1): [EIO]}, IOERR, {"failed_wr_operations": 1}),
        ({("write", 1): [EIO], ("write", 7): [EIO]}, IOERR, {"failed_wr_operations": 1}),
    ],
)
def test_a_request_that_is_split_is_one(
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
    fails: dict[tuple[str, int], list[int | Short]],
    status: int,
    counts: dict[str, int],
) -> None:
    """It is larger than one system call moves. If it fails in two places, it counts once."""
    monkeypatch.setattr(file, "max_transfer", lambda fd: 1024)
    bench = make(EngineScript(Faults(fails)))
    assert statuses(bench, [bench.write(0, fill("s") * 8)]) == [status]
    assert len(bench.script.take_log()) == 4
    assert bench.stats() == counts


# -- failed and invalid --------------------------------------------------------------


@pytest.mark.parametrize("policy", [ErrorPolicy.REPORT, ErrorPolicy.IGNORE])
def test_a_failure_counts_as_one_whatever_the_guest_is_told(
    make: Maker, policy: ErrorPolicy
) -> None:
    fails = Faults({("read", 0): [EIO], ("write", 0): [EIO], ("flush", 0): [EIO]})
    bench = make(EngineScript(fails), rerror=policy, werror=policy, merge=MergePolicy.OFF)
    heads = [bench.read(0), bench.write(0, fill("a")), bench.flush()]
    told = OK if policy is ErrorPolicy.IGNORE else IOERR
    assert statuses(bench, heads) == [told] * 3
    assert bench.stats() == {
        "failed_rd_operations": 1,
        "failed_wr_operations": 1,
        "failed_flush_operations": 1,
    }
    assert bench.device.stats.as_dict()["rd_total_time_ns"] == 0


def test_invalid_requests_have_their_own_counters(make: Maker) -> None:
    bench = make(EngineScript())
    heads = [bench.read(SECTORS), bench.write(SECTORS, fill("a")), bench.send(99)]
    heads += [bench.send(VIRTIO_BLK_T_FLUSH, size=1), bench.send(VIRTIO_BLK_T_GET_ID)]
    assert statuses(bench, heads) == [IOERR, IOERR, UNSUPP, IOERR, IOERR]
    assert bench.stats() == {
        "invalid_rd_operations": 1,
        "invalid_wr_operations": 1,
        "invalid_flush_operations": 1,
        "invalid_other_operations": 2,
    }


# -- merged -----------------------------------------------------------------------------


def test_a_merge_of_k_adds_k_minus_1(make: Maker) -> None:
    bench = make(EngineScript())
    heads = reads(bench, range(8))
    heads += [bench.write(sector, fill("w")) for sector in (20, 21, 22, 40)]
    assert statuses(bench, heads) == [OK] * 12
    assert bench.script.take_log() == [("read", 0, 8), ("write", 20, 3), ("write", 40, 1)]
    assert bench.stats() == {
        "rd_operations": 8,
        "rd_bytes": 8 * 512,
        "rd_merged": 7,
        "wr_operations": 4,
        "wr_bytes": 4 * 512,
        "wr_merged": 2,
    }


def test_nothing_is_merged_without_merging(make: Maker) -> None:
    bench = make(EngineScript(), merge=MergePolicy.OFF)
    assert statuses(bench, reads(bench, range(8))) == [OK] * 8
    assert bench.stats() == {"rd_operations": 8, "rd_bytes": 8 * 512}


def test_only_the_bad_requests_of_a_merged_run_count_as_failed(make: Maker) -> None:
    """Merged at first, executed again singly: still merged once, and each counted once."""
    bench = make(EngineScript(Faults({("read", 2): [EIO], ("read", 5): [EIO]})))
    expected = [IOERR if sector in (2, 5) else OK for sector in range(8)]
    assert statuses(bench, reads(bench, range(8))) == expected
    assert len(bench.script.take_log()) == 9
    assert bench.stats() == {
        "rd_operations": 6,
        "rd_bytes": 6 * 512,
        "rd_merged": 7,
        "failed_rd_operations": 2,
    }


def test_a_short_merged_run_counts_once(make: Maker) -> None:
    script = EngineScript(lambda operation: Short(512) if len(operation.members) > 1 else 0)
    bench = make(script)
    assert statuses(bench, reads(bench, range(4))) == [OK] * 4
    assert bench.stats() == {"rd_operations": 4, "rd_bytes": 4 * 512, "rd_merged": 3}


# -- stop and resume ----------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_a_retried_request_counts_when_it_is_answered(make: Maker, times: int) -> None:
    """Of a merged run two neighbours fail, and are merged again: that counts no more."""
    fails = {("write", 1): [EIO] * times, ("write", 2): [EIO] * times}
    bench = make(EngineScript(Faults(fails)), werror=STOP)
    heads = [bench.write(sector, fill("n")) for sector in range(5)]
    bench.kick()
    for attempt in range(1, times + 1):
        bench.wait_errors(2 * attempt)
        bench.device.pause()
        assert "failed_wr_operations" not in bench.stats()
        bench.device.resume()
    assert [bench.wait(head)[0] for head in heads] == [OK] * 5
    assert bench.script.take_log()[-1] == ("write", 1, 2)
    assert bench.stats() == {"wr_operations": 5, "wr_bytes": 5 * 512, "wr_merged": 4}


def test_requests_that_waited_in_the_ring_count_when_they_leave_it(make: Maker) -> None:
    script = EngineScript(Faults({("write", 0): [EIO]}))
    bench = make(script, werror=STOP)
    heads = [bench.write(0, fill("a")), bench.flush()]
    bench.kick()
    bench.wait_errors(1)
    bench.device.pause()
    heads += [bench.write(sector, fill("b")) for sector in (1, 2)]
    bench.kick()
    bench.device.resume()
    assert [bench.wait(head)[0] for head in heads] == [OK] * 4
    assert bench.stats() == {
        "wr_operations": 3,
        "wr_bytes": 3 * 512,
        "wr_merged": 1,
        "flush_operations": 1,
    }


def test_requests_that_a_reset_drops_do_not_count(make: Maker) -> None:
    bench = make(EngineScript(Faults({("write", 0): [EIO]})), werror=STOP)
    bench.write(0, fill("a"))
    bench.flush()
    bench.kick()
    bench.wait_errors(1)
    bench.transport.reset()
    assert bench.stats() == {}
    bench.transport.start()
    assert statuses(bench, [bench.read(0)]) == [OK]
    assert bench.stats() == {"rd_operations": 1, "rd_bytes": 512}


# -- idle time ------------------------------------------------------------------------------


def test_idle_time_is_since_a_request_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000
    monkeypatch.setattr(stats.time, "monotonic_ns", lambda: now)
    counted = Stats()
    now = 1500
    assert counted.as_dict()["idle_time_ns"] == 500
    counted.done(VIRTIO_BLK_T_IN, 512, 10, 1400)
    assert counted.as_dict()["idle_time_ns"] == 100
    # The thread that counts may be ahead of the one that looks.
    counted.done(VIRTIO_BLK_T_IN, 512, 10, 1600)
    assert counted.as_dict()["idle_time_ns"] == 0


@pytest.mark.parametrize("policy", [ErrorPolicy.REPORT, ErrorPolicy.IGNORE])
def test_only_a_request_that_succeeds_ends_the_idle_time(
    make: Maker, monkeypatch: pytest.MonkeyPatch, policy: ErrorPolicy
) -> None:
    """Failed and invalid requests do not: account_failed and account_invalid are off."""
    now = 1000
    monkeypatch.setattr("time.monotonic_ns", lambda: now)
    monkeypatch.setattr("blk_bench.monotonic_ns", lambda: now)
    bench = make(EngineScript(Faults({("read", 0): [EIO]})), rerror=policy)

    def idle() -> int:
        return bench.device.stats.as_dict()["idle_time_ns"]

    now = 2000
    told = OK if policy is ErrorPolicy.IGNORE else IOERR
    assert statuses(bench, [bench.read(0), bench.read(SECTORS), bench.send(99)]) == [
        told,
        IOERR,
        UNSUPP,
    ]
    assert idle() == 1000
    assert statuses(bench, [bench.read(1)]) == [OK]
    assert idle() == 0


# -- the line ---------------------------------------------------------------------------------


def test_the_classic_line() -> None:
    counted = Stats()
    counted.done(VIRTIO_BLK_T_IN, 1024, 7, 0)
    counted.done(VIRTIO_BLK_T_OUT, 512, 9, 0)
    counted.merged(VIRTIO_BLK_T_OUT, 3)
    assert classic_line("virtio1", counted.as_dict()) == (
        "virtio1: rd_bytes=1024 wr_bytes=512 rd_operations=1 wr_operations=1 "
        "flush_operations=0 wr_total_time_ns=9 rd_total_time_ns=7 flush_total_time_ns=0 "
        "rd_merged=0 wr_merged=3"
    )
