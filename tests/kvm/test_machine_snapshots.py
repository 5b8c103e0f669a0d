"""Snapshots in memory, machines that begin from them, and machines that are put back."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from counting_guest import SUM, Counting, counting_config
from patience import ends, in_thread, patience, until

from pykvm.errors import UsageError
from pykvm.machine import DiskConfig, Machine, MachineConfig, RunState
from pykvm.machine.outcome import Outcome
from pykvm.machine.snapshot import MachineSnapshot
from pykvm.snapshot.fields import SnapshotError

pytestmark = pytest.mark.kvm


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    return counting_config(tmp_path)


@pytest.fixture
def machine(config: MachineConfig) -> Iterator[Machine]:
    with Machine(config) as made:
        made.start()
        yield made


def test_a_machine_begins_where_the_other_was(machine: Machine, config: MachineConfig):
    guest = Counting(machine)
    assert [guest.add(5), guest.add(200)] == [5, 205]
    with machine.snapshot() as snapshot:
        assert guest.add(1) == 206
        with Machine(config, snapshot=snapshot) as other:
            copy = Counting(other)
            other.start()
            assert [copy.add(10), copy.add(10)] == [215, 225]
        assert guest.add(1) == 207


def test_a_chain_of_snapshots(machine: Machine, config: MachineConfig):
    """The later ones copy only the pages that have changed."""
    guest, taken = Counting(machine), []
    with ExitStack() as stack:
        for step in range(3):
            assert guest.add(1) == step + 1
            taken.append(stack.enter_context(machine.snapshot()))
        assert len({snapshot.id for snapshot in taken}) == 3
        for step, snapshot in enumerate(taken):
            other = stack.enter_context(Machine(config, snapshot=snapshot))
            copy = Counting(other)
            other.start()
            assert copy.add(100) == step + 101
            with other.snapshot() as child, Machine(config, snapshot=child) as grandchild:
                third = Counting(grandchild)
                grandchild.start()
                assert third.add(100) == step + 201
        assert guest.add(1) == 4


def test_machines_of_one_snapshot_are_isolated(machine: Machine, config: MachineConfig):
    Counting(machine).add(7)
    with ExitStack() as stack:
        with machine.snapshot() as snapshot:
            others = [stack.enter_context(Machine(config, snapshot=snapshot)) for _ in range(5)]
        guests = [Counting(other) for other in others]
        for other in others:
            other.start()
        for step in range(1, 4):
            sums = [guest.add(number) for number, guest in enumerate(guests)]
            assert sums == [7 + step * number for number in range(5)]


def test_a_machine_is_put_back_again_and_again_while_it_runs(machine: Machine):
    Counting(machine).add(40)
    with machine.snapshot() as snapshot:
        for _ in range(200):
            machine.reset(snapshot)
            guest = Counting(machine)
            assert [guest.add(1), guest.add(1)] == [41, 42]
    assert machine.status is RunState.RUNNING


def test_a_machine_is_put_back_to_any_snapshot_of_its_kind(machine: Machine, config: MachineConfig):
    with ExitStack() as stack:
        taken = []
        for _ in range(3):
            guest = Counting(machine)
            guest.add(10)
            taken.append(stack.enter_context(machine.snapshot()))
        other = stack.enter_context(Machine(config, snapshot=taken[1]))
        other.start()
        Counting(other).add(255)
        foreign = stack.enter_context(other.snapshot())
        for snapshot, expected in ((taken[0], 11), (taken[2], 31), (foreign, 276), (taken[1], 21)):
            machine.reset(snapshot)
            assert Counting(machine).add(1) == expected


def test_a_paused_machine_stays_paused(machine: Machine, config: MachineConfig):
    guest = Counting(machine)
    guest.add(3)
    machine.pause()
    with machine.snapshot() as snapshot:
        assert machine.status is RunState.PAUSED
        machine.ram.write(SUM, b"\xff")
        machine.reset(snapshot)
        assert machine.status is RunState.PAUSED
        assert machine.ram.read(SUM, 1) == b"\x03"
        guest = Counting(machine)
        machine.resume()
        assert guest.add(1) == 4
        with Machine(config, snapshot=snapshot) as other:
            copy = Counting(other)
            other.start()
            assert copy.add(1) == 4


def test_no_event_tells_of_a_snapshot_or_a_reset(machine: Machine):
    events: list[object] = []
    machine.listen(events.append)
    with machine.snapshot() as snapshot:
        machine.reset(snapshot)
    machine.flush_events()
    assert events == []
    assert machine.resumes == 0


def test_threads_may_ask_at_the_same_time(machine: Machine):
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with machine.snapshot() as snapshot:
                    machine.reset(snapshot)
                machine.pause()
                machine.resume()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Counting(machine).add(1) == 1


def test_a_folder_written_from_memory(machine: Machine, config: MachineConfig, tmp_path: Path):
    Counting(machine).add(9)
    with machine.snapshot() as snapshot:
        Counting(machine).add(9)
        snapshot.write(tmp_path / "one")
        snapshot.write(tmp_path / "two")
        assert snapshot.folder is None
    with MachineSnapshot.open(tmp_path / "one") as opened:
        assert opened.id == snapshot.id
        opened.verify()
        opened.write(tmp_path / "three")
    for name in ("two", "three"):
        with Machine(config, snapshot=tmp_path / name) as other:
            copy = Counting(other)
            other.start()
            assert copy.add(1) == 10
    assert (tmp_path / "one" / "ram").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("name", ["ram", "state.json"])
def test_only_verify_notices_a_changed_byte(machine: Machine, tmp_path: Path, name: str):
    machine.ram.write(0x12_3000, b"precious")
    machine.save(tmp_path / "saved")
    path = tmp_path / "saved" / name
    data = path.read_bytes()
    changed = data.replace(b"precious", b"Precious") if name == "ram" else data + b" "
    assert changed != data
    path.write_bytes(changed)
    with MachineSnapshot.open(tmp_path / "saved") as opened:
        with pytest.raises(SnapshotError, match=f"its {name} is different"):
            opened.verify()
        path.write_bytes(data)
        opened.verify()


@pytest.mark.parametrize("name", ["disk0.data", "disk0.map"])
def test_verify_notices_a_changed_byte_of_a_disk(tmp_path: Path, name: str):
    with Machine(counting_config(tmp_path, disks=["1M"])) as machine:
        machine.start()
        machine.disks[0].write(4096, b"precious")
        machine.save(tmp_path / "saved")
    data = (tmp_path / "saved" / name).read_bytes()
    with MachineSnapshot.open(tmp_path / "saved") as opened:
        opened.verify()
        (tmp_path / "saved" / name).write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
        with pytest.raises(SnapshotError, match=f"its {name} is different"):
            opened.verify()


def test_a_snapshot_of_a_different_machine_changes_nothing(
    machine: Machine, config: MachineConfig, tmp_path: Path
):
    guest = Counting(machine)
    guest.add(1)
    with Machine(counting_config(tmp_path, memory=16 << 20)) as other:
        other.start()
        with other.snapshot() as foreign:
            with pytest.raises(SnapshotError, match="a different guest, or to other options"):
                machine.reset(foreign)
            with pytest.raises(SnapshotError, match="a different guest, or to other options"):
                Machine(config, snapshot=foreign)
    assert guest.add(1) == 2


def test_a_machine_that_does_not_run_has_no_snapshots(config: MachineConfig):
    with Machine(config) as machine:
        with pytest.raises(UsageError, match="does not run"):
            machine.snapshot()
        machine.start()
        with machine.snapshot() as snapshot:
            machine.finish(Outcome.quit())
            machine.wait()
            with pytest.raises(UsageError, match="does not run"):
                machine.snapshot()
            with pytest.raises(UsageError, match="does not run"):
                machine.reset(snapshot)


def test_nothing_is_left_open(config: MachineConfig):
    before = os.listdir("/proc/self/fd")
    with Machine(config) as machine:
        machine.start()
        for _ in range(3):
            with machine.snapshot() as snapshot, Machine(config, snapshot=snapshot) as other:
                other.start()
                other.reset(snapshot)
    assert os.listdir("/proc/self/fd") == before


def test_a_reset_keeps_the_disks_of_the_snapshot_whatever_came_and_went(tmp_path: Path) -> None:
    config = counting_config(tmp_path, disks=["1M", "2M"])
    with Machine(config) as machine:
        machine.start()
        first, kept = machine.disks
        machine.remove_disk(first)
        with machine.snapshot() as snapshot:
            later = machine.add_disk("3M")
            assert machine.disks == [later, kept]
            machine.reset(snapshot)
            assert machine.disks == [kept]
            machine.reset(snapshot)
            machine.remove_disk(kept)
            machine.add_disk("2M")
            with pytest.raises(UsageError, match="has no longer the disk with the PCI number"):
                machine.reset(snapshot)
        assert machine.outcome is None


def test_an_image_that_changed_costs_no_guest_its_life(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    config = counting_config(tmp_path, disks=[DiskConfig(image, readonly=True)])
    with Machine(config) as machine:
        machine.start()
        with machine.snapshot() as snapshot:
            machine.reset(snapshot)
            os.utime(image, ns=(0, 1))
            machine.add_disk("1M")
            with pytest.raises(SnapshotError, match="has changed since"):
                machine.reset(snapshot)
        assert machine.outcome is None
        assert len(machine.disks) == 2


def test_a_closed_snapshot_serves_no_more_and_the_guest_goes_on(
    machine: Machine, config: MachineConfig, tmp_path: Path
):
    guest = Counting(machine)
    with machine.snapshot() as snapshot:
        guest.add(1)
    calls = (
        lambda: machine.reset(snapshot),
        lambda: Machine(config, snapshot=snapshot),
        lambda: snapshot.write(tmp_path / "new"),
        snapshot.verify,
    )
    for call in calls:
        with pytest.raises(UsageError, match="the snapshot is closed"):
            call()
    assert not (tmp_path / "new").exists()
    assert guest.add(1) == 2


def test_shared_memory_is_neither_saved_nor_put_back(machine: Machine, tmp_path: Path):
    config = counting_config(tmp_path, shared_memory=True)
    with machine.snapshot() as snapshot, Machine(config) as sharing:
        guest = Counting(sharing)
        sharing.start()
        for call in (sharing.snapshot, lambda: sharing.reset(snapshot)):
            with pytest.raises(UsageError, match="would be shared no longer"):
                call()
        assert guest.add(1) == 1
        assert sharing.memory.fd >= 0


def test_a_vcpu_that_does_not_stop_is_no_lack_of_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    def still() -> None:
        raise TimeoutError("a vCPU is busy")

    monkeypatch.setattr(machine, "still", still)
    with pytest.raises(TimeoutError, match="a vCPU is busy"):
        machine.snapshot()


def test_a_machine_closes_after_a_snapshot_that_a_different_thread_takes(machine: Machine):
    taken, in_freeze, freeze = [], threading.Event(), machine.memory.freeze

    def slow(copy: object) -> object:
        in_freeze.set()
        until(closing.is_alive)
        return freeze(copy)

    machine.memory.freeze = slow
    closing = threading.Thread(target=machine.close)
    taking = in_thread(lambda: taken.append(machine.snapshot()))
    assert in_freeze.wait(patience(20))
    closing.start()
    assert ends(taking)
    assert ends(closing)
    taken[0].close()
    for call in (machine.snapshot, lambda: machine.reset(taken[0]), lambda: machine.add_disk("1M")):
        with pytest.raises(UsageError, match="closed"):
            call()
