"""A disk that may not use guest memory, because its driver has turned PCI bus mastering off."""

import errno
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from blk_bench import Bench, EngineScript, Faults, Maker, fill, sector_of, stopping_benches
from patience import ends, goes_on, in_thread

from pykvm.devices.virtio_blk.config_space import FIELDS
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_S_OK
from pykvm.errors import UsageError

OK = VIRTIO_BLK_S_OK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path, packed: bool) -> Iterator[Maker]:
    with stopping_benches(path, packed=packed) as maker:
        yield maker


def test_a_hold_completes_operations_in_flight_and_the_rest_waits(make: Maker, path: Path) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    first = bench.write(0, fill("a"))
    bench.kick()
    script.wait_for(1)
    holding = in_thread(bench.device.hold)
    assert goes_on(holding)
    second = bench.write(1, fill("b"))
    bench.kick()
    script.release()
    assert ends(holding)
    assert list(bench.answered()) == [first]
    assert goes_on(bench.io_thread)
    assert bench.answered() == []
    assert script.waiting == []
    bench.device.release()
    script.wait_for(1)
    script.release()
    assert bench.wait(second)[0] == OK
    assert sector_of(path, 1) == fill("b")


def test_a_resume_of_the_machine_does_not_end_a_hold(make: Maker) -> None:
    bench = make(EngineScript())
    bench.device.hold()
    head = bench.read(0)
    bench.kick()
    bench.device.pause()
    bench.device.resume()
    assert stays_silent(bench)
    bench.device.pause()
    bench.device.release()
    assert stays_silent(bench)
    bench.device.resume()
    assert bench.wait(head)[0] == OK


def test_the_end_of_a_hold_does_not_undo_the_stop_for_an_error(make: Maker) -> None:
    script = EngineScript(Faults({("write", 5): [errno.ENOSPC]}), slow=True)
    bench = make(script)
    head = bench.write(5, fill("n"))
    bench.kick()
    script.wait_for(1)
    script.release()
    bench.wait_errors(1)
    bench.device.hold()
    bench.device.release()
    assert stays_silent(bench)
    assert script.waiting == []
    bench.device.resume()
    script.wait_for(1)
    script.release()
    assert bench.wait(head)[0] == OK


def test_the_owner_hears_of_a_driver_that_starts_a_held_disk(make: Maker) -> None:
    held: list[None] = []
    bench = make(EngineScript(), on_held=lambda: held.append(None))
    bench.device.hold()
    assert held == []
    bench.transport.reset()
    bench.transport.start()
    assert held == [None]
    bench.device.release()
    bench.transport.reset()
    bench.transport.start()
    assert held == [None]


def test_a_hold_outlasts_a_reset(make: Maker) -> None:
    bench = make(EngineScript())
    bench.device.hold()
    bench.transport.reset()
    bench.transport.start()
    head = bench.read(0)
    bench.kick()
    assert stays_silent(bench)
    bench.device.release()
    assert bench.wait(head)[0] == OK


def test_a_held_disk_cannot_shrink(make: Maker) -> None:
    """Its driver may release it at any moment."""
    bench = make(EngineScript())
    bench.device.hold()
    with pytest.raises(UsageError):
        bench.device.resize(512)
    bench.device.pause()
    bench.device.resize(512)


@pytest.mark.parametrize("wait", ["hold", "write through"])
def test_the_end_of_the_run_waits_for_no_operation(make: Maker, wait: str) -> None:
    over = Event()
    bench = make(script := EngineScript(slow=True), over=over.is_set)
    bench.write(0, fill("a"))
    bench.kick()
    script.wait_for(1)
    writeback = FIELDS["writeback"][0]
    waiting = in_thread(
        bench.device.hold if wait == "hold" else lambda: bench.device.write_config(writeback, 1, 0)
    )
    assert goes_on(waiting)
    over.set()
    assert ends(waiting)
    script.release()


def stays_silent(bench: Bench) -> bool:
    """Its thread is alive and answers nothing."""
    return goes_on(bench.io_thread) and bench.answered() == []
