"""A disk that is paused, resumed and reset at any moment."""

import errno
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from blk_bench import SECTORS, Bench, EngineScript, Faults, Maker, fill, sector_of, stopping_benches
from patience import PATIENCE, ends, goes_on, in_thread

from pykvm.devices.virtio_blk import (
    ErrorPolicy,
    Image,
    IoError,
    VirtioBlk,
)
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_GET_ID,
)
from pykvm.devices.virtio_blk.core.operation import Operation

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
FULL = errno.ENOSPC


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path, packed: bool) -> Iterator[Maker]:
    with stopping_benches(path, packed=packed) as maker:
        yield maker


def test_pause_awaits_operations_in_flight_and_starts_none(make: Maker, path: Path) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    heads = [bench.write(0, fill("a")), bench.read(4), bench.write(0, fill("b")), bench.flush()]
    bench.kick()
    script.wait_for(2)
    pausing = in_thread(bench.device.pause)
    assert goes_on(pausing)
    script.release()
    assert goes_on(pausing)
    late = bench.read(6)
    bench.kick()
    script.release()
    assert ends(pausing)
    assert set(bench.answered()) == {heads[0], heads[1]}
    assert bench.transport.interrupts
    assert script.take_log() == [("write", 0, 1), ("read", 4, 1)]
    bench.device.resume()
    # Planned anew: the second write starts, the flush waits for it, the late read does not.
    script.wait_for(2)
    script.release()
    script.wait_for(2)
    script.release()
    script.release()
    assert [bench.wait(head)[0] for head in [*heads, late]] == [OK] * 5
    assert bench.stats()["wr_operations"] == 2
    assert sector_of(path, 0) == fill("b")


def test_a_request_that_fails_during_a_pause_is_kept(make: Maker) -> None:
    script = EngineScript(Faults({("write", 5): [FULL]}), slow=True)
    bench = make(script)
    head = bench.write(5, fill("n"))
    bench.kick()
    script.wait_for(1)
    pausing = in_thread(bench.device.pause)
    assert goes_on(pausing)
    script.release()
    assert ends(pausing)
    assert len(bench.errors) == 1
    assert bench.answered() == []
    bench.device.resume()
    script.wait_for(1)
    script.release()
    assert bench.wait(head)[0] == OK


def test_pausing_twice_is_pausing_once(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    head = bench.read(0)
    bench.kick()
    script.wait_for(1)
    pausing = [in_thread(bench.device.pause) for _ in range(2)]
    assert all(map(goes_on, pausing))
    script.release()
    assert all(map(ends, pausing))
    assert ends(in_thread(bench.device.pause))
    bench.device.resume()
    assert bench.wait(head)[0] == OK
    again = bench.read(1)
    bench.kick()
    script.wait_for(1)
    # The next pause waits again.
    pausing = [in_thread(bench.device.pause)]
    assert goes_on(pausing[0])
    script.release()
    assert ends(pausing[0])
    assert bench.wait(again)[0] == OK


def test_a_paused_disk_does_not_look_at_its_ring(make: Maker) -> None:
    """Not even for a request that needs no engine: the memory of a paused guest never changes."""
    bench = make(EngineScript())
    bench.device.pause()
    heads = [bench.send(VIRTIO_BLK_T_GET_ID, size=20), bench.read(SECTORS)]
    bench.kick()
    assert goes_on(bench.io_thread)
    assert bench.answered() == []
    bench.device.resume()
    assert [bench.wait(head)[0] for head in heads] == [OK, IOERR]


def test_resume_without_a_pause_does_nothing(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    head = bench.write(3, fill("n"))
    bench.kick()
    script.wait_for(1)
    bench.device.resume()
    bench.device.resume()
    later = bench.read(7)
    bench.kick()
    script.wait_for(2)
    script.release()
    script.release()
    assert [bench.wait(h)[0] for h in (head, later)] == [OK, OK]
    assert script.log == [("write", 3, 1), ("read", 7, 1)]


def test_a_resume_overtakes_a_pause_that_waits(make: Maker) -> None:
    """Neither waits for the other for ever. Operations in flight are not disturbed."""
    script = EngineScript(slow=True)
    bench = make(script)
    head = bench.read(0)
    bench.kick()
    script.wait_for(1)
    pausing = in_thread(bench.device.pause)
    assert goes_on(pausing)
    bench.device.resume()
    assert ends(pausing)
    script.release()
    assert bench.wait(head)[0] == OK
    assert script.log == [("read", 0, 1)]


def test_a_pause_right_after_a_resume_holds(make: Maker) -> None:
    bench = make(EngineScript(Faults({("write", 5): [FULL] * 100})))
    bench.write(5, fill("n"))
    bench.kick()
    bench.wait_errors(1)
    for _ in range(50):
        bench.device.pause()
        bench.device.resume()
        bench.device.pause()
        seen = len(bench.script.log)
        bench.kick()
        assert len(bench.script.log) == seen
    assert bench.answered() == []


def test_before_the_driver_has_started_there_is_nothing_to_pause(path: Path) -> None:
    path.write_bytes(bytes(512))
    device = VirtioBlk(Image(path))
    device.pause()
    device.resume()
    device.close()
    device.pause()
    device.resume()


def test_a_ring_that_breaks_while_paused(make: Maker) -> None:
    bench = make(EngineScript())
    bench.device.pause()
    bench.transport.drivers[0].spoil()
    bench.kick()
    bench.device.resume()
    assert "queue 0" in bench.transport.wait_broken()
    bench.device.pause()
    bench.device.resume()


def test_a_bug_keeps_no_pause_waiting(make: Maker) -> None:
    """An engine that fails even at the attempt to drain it."""
    script = EngineScript(slow=True)
    failures: list[BaseException] = []
    bench = make(script, on_failure=failures.append)
    bench.read(0)
    bench.kick()
    script.wait_for(1)
    engine = bench.device._threads._services[0].engine
    good, calls = engine.completions, iter([ZeroDivisionError("a bug")])

    def completions() -> object:
        for error in calls:
            raise error
        return good()

    engine.completions = completions  # type: ignore[assignment, method-assign]
    pausing = in_thread(bench.device.pause)
    script.release()
    assert ends(pausing)
    assert "a bug" in bench.transport.wait_broken()
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


def test_a_bug_among_completions_keeps_no_reset_waiting(make: Maker) -> None:
    """The listener raises while more completions wait."""
    script = EngineScript(lambda operation: errno.EIO, slow=True)
    failures: list[BaseException] = []
    heard: list[IoError] = []

    def listener(error: IoError) -> None:
        heard.append(error)
        raise ZeroDivisionError("a bug")

    bench = make(script, on_error=listener, on_failure=failures.append)
    engine = bench.device._threads._services[0].engine
    good, together = engine.completions, list[Operation]()

    def completions() -> list[Operation]:
        together.extend(good())
        return [together.pop() for _ in range(2)] if len(together) == 2 else []

    engine.completions = completions  # type: ignore[method-assign]
    for sector in (0, 5):
        bench.read(sector)
    bench.kick()
    script.wait_for(2)
    script.release()
    script.release()
    assert "a bug" in bench.transport.wait_broken()
    assert ends(in_thread(bench.transport.reset))
    assert len(heard) == len(failures) == 1


# -- reset, close ----------------------------------------------------------------


def start_again(bench: Bench) -> None:
    """After a reset nothing of before is left, and the disk works."""
    assert bench.transport.drivers[0].collect() == []
    bench.transport.reset()
    bench.transport.start()
    bench.script.take_log()
    head = bench.read(9)
    bench.kick()
    if bench.script.slow:
        bench.script.wait_for(1)
        bench.script.release()
    assert bench.wait(head) == (OK, fill("o"))
    assert bench.script.take_log() == [("read", 9, 1)]


@pytest.mark.parametrize("pause", [False, True])
def test_reset_while_halted_drops_the_kept_requests(make: Maker, path: Path, pause: bool) -> None:
    bench = make(EngineScript(Faults({("write", 5): [FULL]})))
    bench.write(5, fill("n"))
    bench.flush()
    bench.kick()
    bench.wait_errors(1)
    if pause:
        bench.device.pause()
    bench.read(6)
    bench.kick()
    interrupts = len(bench.transport.interrupts)
    bench.device.reset()
    bench.device.resume()
    assert len(bench.transport.interrupts) == interrupts
    assert bench.script.log == [("write", 5, 1)]
    start_again(bench)
    assert sector_of(path, 5) == fill("o")
    assert len(bench.errors) == 1


def test_reset_with_one_failed_and_one_executing(make: Maker) -> None:
    """Halted by the first, the reset waits for the second, and neither is answered."""
    script = EngineScript(Faults({("write", 5): [FULL]}), slow=True)
    bench = make(script)
    bench.write(5, fill("n"))
    bench.read(7)
    bench.write(5, fill("m"))
    bench.kick()
    script.wait_for(2)
    script.release()
    bench.wait_errors(1)
    resetting = in_thread(bench.device.reset)
    assert goes_on(resetting)
    script.release()
    assert ends(resetting)
    assert script.log == [("write", 5, 1), ("read", 7, 1)]
    start_again(bench)


def test_a_failure_during_a_reset_is_not_reported(make: Maker) -> None:
    script = EngineScript(Faults({("write", 5): [FULL]}), slow=True)
    bench = make(script)
    bench.write(5, fill("n"))
    bench.kick()
    script.wait_for(1)
    resetting = in_thread(bench.device.reset)
    assert goes_on(resetting)
    script.release()
    assert ends(resetting)
    assert bench.errors == []
    assert bench.stats() == {}
    start_again(bench)


def test_reset_ends_a_pause_that_waits(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    bench.read(0)
    bench.kick()
    script.wait_for(1)
    pausing = in_thread(bench.device.pause)
    assert goes_on(pausing)
    resetting = in_thread(bench.device.reset)
    assert goes_on(resetting)
    assert goes_on(pausing)
    script.release()
    assert ends(pausing)
    assert ends(resetting)
    start_again(bench)


def test_reset_while_paused(make: Maker) -> None:
    bench = make(EngineScript())
    bench.device.pause()
    bench.write(5, fill("n"))
    bench.kick()
    bench.device.reset()
    assert bench.script.log == []
    start_again(bench)


def test_a_reset_at_the_moment_of_an_answer(make: Maker) -> None:
    """It comes after the decision on the answer, and before the driver sees it."""
    script = EngineScript(Faults({("read", 5): [errno.EIO]}))
    bench = make(script, rerror=ErrorPolicy.REPORT)
    resetting: list[Thread] = []

    def announce(error: IoError) -> None:
        resetting.append(in_thread(bench.device.reset))
        assert script.stopped.wait(PATIENCE)
        bench.note(error)

    bench.on_error = announce
    bench.read(5)
    bench.kick()
    bench.wait_errors(1)
    assert ends(resetting[0])
    assert bench.transport.interrupts == []
    start_again(bench)
