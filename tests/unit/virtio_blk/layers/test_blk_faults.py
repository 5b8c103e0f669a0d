"""The engine that injects faults: effects, delays, and that no operation is lost."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from blk_operations import ManualEngine, flush, operation, read, readable, write
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import Engine, Image, SyncEngine
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.layers.faults import Access, Effect, Fault, FaultPlan
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram

HOUR_MS = 3_600_000


@pytest.fixture
def start(image: Image) -> Iterator[Callable[..., Engine]]:
    """Makes an engine that follows a plan, and closes it."""
    made: list[Engine] = []

    def make(
        plan: FaultPlan,
        ram: Ram | None = None,
        factory: Callable[[Image, Ram], Engine] = SyncEngine,
    ) -> Engine:
        made.append(plan.wrap(factory)(image, ram or Ram.flat(1 << 14)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def run(engine: Engine, *operations: Operation) -> list[tuple[int, int]]:
    """Execute ``operations``; (errno, bytes moved) of each."""
    engine.submit(operations)
    waiting = set(operations)
    while waiting:
        assert readable(engine.notifier, 10_000), "completions that nobody tells of"
        for done in engine.completions():
            waiting.remove(done)
            assert done.finished_ns
    assert engine.completions() == []
    assert not readable(engine.notifier)
    return [(op.error, op.moved) for op in operations]


# -- effects --------------------------------------------------------------


def test_without_rules_the_inner_engine_executes_everything(
    start: Callable[..., Engine], path: Path
) -> None:
    ram = Ram.flat(1 << 14)
    engine = start(FaultPlan(), ram)
    assert run(engine, read(512), flush(), write(4096)) == [(0, 1024), (0, 0), (0, 1024)]
    content = path.read_bytes()
    assert bytes(ram.bytes[:1024]) == content[512:1536] == content[4096:5120]


def test_an_error_executes_nothing(start: Callable[..., Engine], path: Path) -> None:
    before = path.read_bytes()
    engine = start(FaultPlan([Fault(operation="write", sectors=9, errno="ENOSPC")]))
    assert run(engine, write(4096), read(4096)) == [(errno.ENOSPC, 0), (0, 1024)]
    assert path.read_bytes() == before
    assert run(engine, write(8192)) == [(0, 1024)]
    assert path.read_bytes() != before


@pytest.mark.parametrize("inner", [SyncEngine, ManualEngine])
def test_a_short_transfer_executes_its_part(
    start: Callable[..., Engine], path: Path, inner: type[Engine]
) -> None:
    ram = Ram.flat(1 << 14)
    before = path.read_bytes()
    engine = start(FaultPlan([Fault(short=700)]), ram, inner)
    ram.bytes[4096:5120] = bytes(1024)
    short = operation(VIRTIO_BLK_T_OUT, 512, [(4096, 512), (4608, 512)])
    enough = operation(VIRTIO_BLK_T_IN, 8192, [(0, 700)])
    engine.submit([short, enough])
    if isinstance(inner := engine._inner, ManualEngine):
        assert [op.length for op in inner.held] == [700, 700]
        assert engine.completions() == []
        inner.finish()
    assert set(engine.completions()) == {short, enough}
    assert (short.error, short.moved) == (enough.error, enough.moved) == (0, 700)
    if not isinstance(inner, ManualEngine):
        assert path.read_bytes() == before[:512] + bytes(700) + before[1212:]


def test_a_short_transfer_of_nothing(start: Callable[..., Engine], path: Path) -> None:
    before = path.read_bytes()
    assert run(start(FaultPlan([Fault(short=0)])), write(), flush()) == [(0, 0), (0, 0)]
    assert path.read_bytes() == before


def test_an_error_after_a_part(start: Callable[..., Engine], path: Path) -> None:
    before = path.read_bytes()
    engine = start(FaultPlan([Fault(operation="write", short=512, errno="EIO")]))
    assert run(engine, write(2048)) == [(errno.EIO, 512)]
    assert path.read_bytes() == before[:2048] + bytes(512) + before[2560:]
    # However much there is to do: it still fails.
    assert run(engine, write(2048, 512)) == [(errno.EIO, 512)]


def test_the_inner_engines_error_comes_first(start: Callable[..., Engine]) -> None:
    engine = start(FaultPlan([Fault(short=512, errno="EIO")]), factory=ManualEngine)
    failing = read()
    engine.submit([failing])
    engine._inner.finish(errno.ENOSPC)
    assert engine.completions() == [failing]
    assert failing.error == errno.ENOSPC


def test_a_flush_that_fails_does_not_sync(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    engine = start(FaultPlan([Fault(operation="flush", count=1, errno="EIO")]))
    assert run(engine, flush()) == [(errno.EIO, 0)]
    assert not synced
    assert run(engine, flush()) == [(0, 0)]
    assert len(synced) == 1


def test_a_call_sees_what_is_about_to_happen(start: Callable[..., Engine]) -> None:
    seen: list[Access] = []

    def call(access: Access) -> Effect | None:
        seen.append(access)
        return Effect(errno="EIO") if access.operation == "write" else None

    engine = start(FaultPlan([Fault(call=call)]))
    assert run(engine, read(512), write(), flush()) == [(0, 1024), (errno.EIO, 0), (0, 0)]
    assert seen == [Access("read", 1, 2), Access("write", 0, 2), Access("flush", 0, 0)]


# -- the plan while it is followed ----------------------------------------


def test_the_plan_changes_while_the_disk_runs(start: Callable[..., Engine]) -> None:
    plan = FaultPlan()
    engine = start(plan)
    assert run(engine, read()) == [(0, 1024)]
    broken = plan.add(Fault(errno="EIO"))
    full = plan.add(Fault(operation="write", errno="ENOSPC"))
    assert plan.rules == (broken, full)
    assert run(engine, read(), write()) == [(errno.EIO, 0)] * 2
    plan.remove(broken)
    plan.remove(broken)
    assert run(engine, read(), write()) == [(0, 1024), (errno.ENOSPC, 0)]
    plan.clear()
    assert run(engine, write()) == [(0, 1024)]
    assert (broken.strikes, full.strikes) == (2, 1)


def test_counts_outlive_a_reset(image: Image) -> None:
    plan = FaultPlan([Fault(nth=2, count=1, errno="EIO")])
    results = []
    for _ in range(3):
        engine = plan.wrap()(image, Ram.flat(4096))
        results += run(engine, read())
        engine.close()
    assert results == [(0, 1024), (errno.EIO, 0), (0, 1024)]


def test_two_threads_change_the_plan(start: Callable[..., Engine]) -> None:
    """Each strike counts once, however often the plan changes meanwhile."""
    plan = FaultPlan([Fault(operation="write", errno="EIO")])
    engine = start(plan)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            plan.remove(plan.add(Fault(operation="read", delay_ms=0.001)))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            assert run(engine, write(), read()) == [(errno.EIO, 0), (0, 1024)]
    finally:
        ended.set()
        thread.join()
    assert plan.rules[0].strikes == 200


def test_a_call_may_change_its_own_plan(start: Callable[..., Engine]) -> None:
    plan = FaultPlan()
    plan.add(Fault(call=lambda access: plan.clear()))
    assert run(start(plan), read(), read()) == [(0, 1024)] * 2
    assert not plan.rules


def test_a_sector_that_a_write_repairs(start: Callable[..., Engine]) -> None:
    plan = FaultPlan()
    engine = start(plan)
    bad = plan.add(Fault(operation="read", sectors=1, errno="EIO"))
    plan.add(Fault(operation="write", sectors=1, call=lambda access: plan.remove(bad)))
    assert run(engine, read(), write(4096), read()) == [(errno.EIO, 0), (0, 1024), (errno.EIO, 0)]
    assert run(engine, write(), read()) == [(0, 1024), (0, 1024)]


# -- delays ---------------------------------------------------------------


def test_a_delay_ends_and_delays_no_other_operation(
    start: Callable[..., Engine], path: Path
) -> None:
    before = path.read_bytes()
    engine = start(FaultPlan([Fault(operation="write", delay_ms=30)]))
    began = time.monotonic_ns()
    slow, quick = write(), read()
    engine.submit([slow, quick])
    assert engine.completions() == [quick]
    assert path.read_bytes() == before
    assert not readable(engine.notifier)
    assert readable(engine.notifier, 10_000)
    assert engine.completions() == [slow]
    assert slow.finished_ns - began >= 30_000_000
    assert (slow.error, slow.moved) == (0, 1024)
    assert path.read_bytes()[1024:] == before[1024:]


def test_delays_end_in_their_order(start: Callable[..., Engine]) -> None:
    delays = iter([40, 10, 0, 10])
    plan = FaultPlan([Fault(call=lambda access: Effect("EIO", delay_ms=next(delays)))])
    engine = start(plan)
    operations = [read() for _ in range(4)]
    assert run(engine, *operations) == [(errno.EIO, 0)] * 4
    order = sorted(range(4), key=lambda i: operations[i].finished_ns)
    assert order == [2, 1, 3, 0]


def test_a_long_delay_does_not_hold_up_a_short_one(start: Callable[..., Engine]) -> None:
    delays = iter([10, HOUR_MS])
    engine = start(FaultPlan([Fault(call=lambda access: Effect(delay_ms=next(delays)))]))
    short, long = read(), read()
    engine.submit([short])
    engine.submit([long])
    assert readable(engine.notifier, 10_000)
    assert engine.completions() == [short]
    engine.stop()
    assert engine.completions() == [long]


def test_a_delayed_short_transfer(start: Callable[..., Engine]) -> None:
    engine = start(FaultPlan([Fault(short=100, delay_ms=1)]))
    assert run(engine, read()) == [(0, 100)]


def test_delays_with_an_engine_that_notifies(start: Callable[..., Engine]) -> None:
    engine = start(FaultPlan([Fault(operation="write", delay_ms=1)]), factory=ManualEngine)
    delayed, other = write(), read()
    engine.submit([delayed, other])
    assert engine._inner.held == [other]
    assert readable(engine.notifier, 10_000)
    assert not engine.completions()
    assert engine._inner.held == [other, delayed]
    assert not readable(engine.notifier)
    engine._inner.finish()
    assert readable(engine.notifier)
    assert engine.completions() == [other, delayed]


def test_words_are_watched_unless_a_delay_is_all_that_can_end(start: Callable[..., Engine]) -> None:
    """An engine without rules may be polled like the one that it wraps."""

    class Watched(ManualEngine):
        def watch(self, watch: Watch) -> bool:
            return True

    plan, words = FaultPlan(), Watch(1)
    engine = start(plan, factory=Watched)
    plain, failing, delayed = read(), write(), write()
    engine.submit([plain])
    assert engine.watch(words)
    plan.add(Fault(operation="write", errno="EIO"))
    engine.submit([failing])
    assert not engine.watch(words)
    assert engine.completions() == [failing]
    assert engine.watch(words)
    plan.clear()
    plan.add(Fault(delay_ms=HOUR_MS))
    engine.submit([delayed])
    assert not engine.watch(words)
    engine.stop()
    assert set(engine.completions()) == {plain, delayed}


def test_rules_that_come_and_go_lose_no_operation(start: Callable[..., Engine]) -> None:
    plan = FaultPlan()
    engine = start(plan)
    for _ in range(3):
        assert run(engine, read(), write()) == [(0, 1024)] * 2
        rule = plan.add(Fault(operation="write", errno="EIO"))
        assert run(engine, read(), write()) == [(0, 1024), (errno.EIO, 0)]
        plan.remove(rule)


def test_a_stop_cancels_what_is_delayed(start: Callable[..., Engine], path: Path) -> None:
    before = path.read_bytes()
    engine = start(FaultPlan([Fault(delay_ms=HOUR_MS)]))
    delayed = [write(i << 12) for i in range(4)]
    engine.submit(delayed)
    assert engine.completions() == []
    thread = threading.Thread(target=engine.stop)
    thread.start()
    assert readable(engine.notifier, 10_000)
    thread.join()
    assert set(engine.completions()) == set(delayed)
    assert {op.error for op in delayed} == {errno.ECANCELED}
    late = write()
    engine.submit([late])
    assert engine.completions() == [late]
    assert late.error == errno.ECANCELED
    assert path.read_bytes() == before


# -- bugs -----------------------------------------------------------------


def test_a_call_that_raises_loses_no_operation(start: Callable[..., Engine]) -> None:
    """A reset waits for every operation: they must come back even now."""
    engine = start(FaultPlan([Fault(operation="write", call=lambda access: 1 // 0)]))
    operations = [read(), write(), read()]
    with pytest.raises(ZeroDivisionError):
        engine.submit(operations)
    assert set(engine.completions()) == set(operations)


def test_an_engine_that_raises_loses_no_operation(image: Image) -> None:
    class Broken(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            raise ZeroDivisionError

    engine = FaultPlan([Fault(operation="read", short=1)]).wrap(Broken)(image, Ram.flat(4096))
    operations = [read(), write()]
    with pytest.raises(ZeroDivisionError):
        engine.submit(operations)
    assert set(engine.completions()) == set(operations)
    engine.close()


def test_descriptors_are_closed(image: Image) -> None:
    before = set(os.listdir("/proc/self/fd"))
    engine = FaultPlan().wrap(ManualEngine)(image, Ram.flat(4096))
    assert set(os.listdir("/proc/self/fd")) - before
    engine.close()
    assert set(os.listdir("/proc/self/fd")) == before


# -- all of it ------------------------------------------------------------

FAULTS = st.builds(
    Fault,
    operation=st.sampled_from(["any", "read", "write"]),
    sectors=st.one_of(st.none(), st.integers(0, 8), st.just("4-")),
    nth=st.integers(1, 4),
    count=st.one_of(st.none(), st.integers(1, 3)),
    probability=st.sampled_from([0.5, 1]),
    errno=st.sampled_from(["EIO", "ENOSPC"]),
    short=st.one_of(st.none(), st.integers(0, 1500)),
    delay_ms=st.sampled_from([0, 0.01]),
)
ACCESSES = st.lists(st.tuples(st.sampled_from("rwf"), st.integers(0, 8)), min_size=1, max_size=12)


@given(st.lists(FAULTS, max_size=4), ACCESSES, st.integers(0, 3))
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_same_operations_meet_the_same_faults(
    image: Image, faults: list[Fault], accesses: list[tuple[str, int]], seed: int
) -> None:
    """Each operation is done once, as its rules say; and again so the second time."""

    def outcome() -> list[tuple[int, int]]:
        engine = FaultPlan(faults, seed).wrap()(image, Ram.flat(4096))
        make = {"r": read, "w": write, "f": lambda offset: flush()}
        results = run(engine, *(make[kind](sector << 9) for kind, sector in accesses))
        engine.close()
        return results

    first = outcome()
    assert first == outcome()
    for (kind, _), (error, moved) in zip(accesses, first, strict=True):
        assert moved == (0 if kind == "f" else 1024) or error
