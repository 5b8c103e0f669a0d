"""A guest under load that is saved, restored and put back at any moment: it must not notice.

Nothing is lost, doubled or reordered, whatever was in flight; see test_bare_stress.py.
"""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bare_load import SECTORS, Load
from bare_owner import machine_of
from patience import PATIENCE

from pykvm.bare import Results, RunState, Script
from pykvm.bare.block import DEFAULT_FEATURES
from pykvm.devices.virtio_blk import EngineKind, ErrorPolicy
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.errors import UsageError
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.machine.run_state import RunState as MachineState
from pykvm.machine.snapshot import MachineSnapshot
from pykvm.virtio.constants import VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED

pytestmark = pytest.mark.kvm

PAUSES = (0.0, 0.001, 0.003)
MOVES = 15


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * 512))
    return DiskConfig(path, rerror=ErrorPolicy.STOP, werror=ErrorPolicy.STOP)


def faults() -> FaultPlan:
    return FaultPlan([Fault(short=512, probability=0.1), Fault(errno="EIO", probability=0.1)])


def finish(machine: Machine, load: Load) -> None:
    """Let the guest end, and look at its results."""
    while machine.outcome is None:
        if machine.status is MachineState.IO_ERROR:
            machine.resume()
        time.sleep(0.001)
    assert machine.wait(PATIENCE).status == 0
    load.check(Results(machine.ram.read))


def taken(machine: Machine) -> MachineSnapshot | None:
    """A snapshot, or None if the run is over."""
    try:
        return machine.snapshot()
    except UsageError:
        assert machine.outcome is not None
        return None


def put_back(machine: Machine, snapshot: MachineSnapshot) -> bool:
    """Put ``machine`` back; False if the run is over."""
    try:
        machine.reset(snapshot)
    except UsageError:
        assert machine.outcome is not None
        return False
    return True


class Traveller:
    """Moves a guest on to a new machine again and again; ``stopped`` counts moves at an error."""

    def __init__(self, seed: int) -> None:
        self.moves = self.stopped = 0
        self._dice = random.Random(seed)

    def run(self, machine: Machine, config: MachineConfig, load: Load, folder: Path | None) -> None:
        """Move the guest of ``machine``, by way of a folder if one is given, until it ends."""
        for _ in range(MOVES):
            machine.listen(lambda event: None)  # so that an error only stops the guest
            machine.start()
            status = machine.status
            time.sleep(self._dice.choice(PAUSES))
            if status is MachineState.IO_ERROR:
                assert machine.status is status, "it went on without a resume"
                self.stopped += 1
                machine.resume()
                time.sleep(self._dice.choice(PAUSES))
            machine.pause()  # until the next machine runs, nobody may change the image
            if (snapshot := taken(machine)) is None:
                break
            machine.close()
            self.moves += 1
            if folder is not None:
                with snapshot:
                    snapshot.write(folder / str(self.moves))
                snapshot = MachineSnapshot.open(folder / str(self.moves))
            with snapshot:
                machine = Machine(config, snapshot=snapshot)
        with machine:
            if machine.status is MachineState.PRELAUNCH:
                machine.listen(lambda event: None)
                machine.start()
            finish(machine, load)


RINGS = {
    "split": 0,
    "packed": VIRTIO_F_RING_PACKED,
    "in order": VIRTIO_F_IN_ORDER,
    "packed in order": VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER,
}


@pytest.mark.parametrize("engine", [EngineKind.SYNC, EngineKind.THREADS, EngineKind.IO_URING])
@pytest.mark.parametrize("rings", RINGS)
def test_a_guest_under_load_moves_from_machine_to_machine(
    disk: DiskConfig, engine: EngineKind, rings: str
):
    features = RINGS[rings]
    load = Load(seed=5, features=DEFAULT_FEATURES | features, msix=rings != "packed")
    disk = replace(
        disk,
        faults=faults(),
        engine=engine,
        packed=bool(features & VIRTIO_F_RING_PACKED),
        in_order=bool(features & VIRTIO_F_IN_ORDER),
    )
    machine = machine_of(load.script, disk)
    traveller = Traveller(seed=6)
    traveller.run(machine, machine.config, load, None)
    assert disk.path.read_bytes() == load.model
    assert traveller.moves > 10
    assert traveller.stopped > 0


def test_a_guest_under_load_moves_by_way_of_folders(disk: DiskConfig, tmp_path: Path):
    load = Load(seed=7, rounds=40)
    disk = replace(disk, snapshot=True, faults=faults())
    machine = machine_of(load.script, disk)
    traveller = Traveller(seed=8)
    traveller.run(machine, machine.config, load, tmp_path)
    assert traveller.moves > 5
    assert not any(disk.path.read_bytes())


@pytest.mark.parametrize("rings", ["split", "packed"])
def test_a_guest_under_load_is_put_back_again_and_again(disk: DiskConfig, rings: str):
    load = Load(seed=9, features=DEFAULT_FEATURES | RINGS[rings])
    disk = replace(disk, snapshot=True, packed=rings == "packed", faults=faults())
    dice = random.Random(10)
    with machine_of(load.script, disk) as machine:
        machine.listen(lambda event: None)
        machine.start()
        for _ in range(30):
            time.sleep(dice.choice(PAUSES))
            if dice.random() < 0.5:
                machine.resume()
            if (snapshot := taken(machine)) is None:
                break
            with snapshot:
                for _ in range(dice.randint(1, 3)):
                    machine.resume()
                    time.sleep(dice.choice(PAUSES))
                    if put_back(machine, snapshot) and snapshot.failed:
                        assert machine.status is MachineState.IO_ERROR
        finish(machine, load)
    assert not any(disk.path.read_bytes())


def test_forks_of_a_guest_under_load_end_alike(disk: DiskConfig):
    load = Load(seed=11)
    disk = replace(disk, snapshot=True)
    with ExitStack() as stack:
        first = stack.enter_context(machine_of(load.script, disk))
        first.start()
        time.sleep(0.01)
        with first.snapshot() as snapshot:
            forks = [
                stack.enter_context(Machine(first.config, snapshot=snapshot)) for _ in range(4)
            ]
        for machine in forks:
            machine.start()
        for machine in (first, *forks):
            finish(machine, load)


def test_a_moving_guest_enters_its_kernel_each_time():
    """A program of the bare guest does so by INT3, and goes on behind it."""
    dice, script = random.Random(14), Script()
    registers = [script.pci_config(0, offset, 4) for offset in (0, 8) * 200]
    script.exit(0)
    with ExitStack() as stack:
        machine = stack.enter_context(machine_of(script))
        machine.start()
        time.sleep(dice.choice(PAUSES))
        while (snapshot := taken(machine)) is not None:
            machine.close()
            with snapshot:
                machine = stack.enter_context(Machine(machine.config, snapshot=snapshot))
            machine.start()
            time.sleep(dice.choice(PAUSES))
        machine.wait(PATIENCE)
        results = Results(machine.ram.read)
    assert [results[one] for one in registers] == [0x1237_8086, 0x0600_0002] * 200


@contextmanager
def ping_pong(rounds: int) -> Iterator[tuple[Machine, list[object]]]:
    """Two vCPUs that pass a word back and forth, and the steps whose results tell how often."""
    script = Script()
    other = Script(cpu=1, arena=script.arena)
    word = script.arena.allocate(64, 64)
    theirs = other.ping_pong(word, turn=1, rounds=rounds, timeout_us=int(1e6 * PATIENCE))
    script.spawn(other)
    ours = script.ping_pong(word, turn=0, rounds=rounds, timeout_us=int(1e6 * PATIENCE))
    joined = script.join(1, int(1e6 * PATIENCE))
    script.exit(0)
    with machine_of(script, cpus=2) as machine:
        yield machine, [ours, theirs, joined]


def check_ping_pong(machine: Machine, steps: list[object], rounds: int) -> None:
    assert machine.wait(PATIENCE).status == 0
    ours, theirs, joined = steps
    results = Results(machine.ram.read)
    assert results[joined] == RunState.FINISHED
    assert results[ours].rounds == results[theirs].rounds == rounds


def test_two_vcpus_move_from_machine_to_machine():
    """Each needs the other's last word for its next one."""
    dice, rounds = random.Random(12), 30_000
    with ExitStack() as stack:
        machine, steps = stack.enter_context(ping_pong(rounds))
        machine.start()
        for _ in range(MOVES):
            time.sleep(dice.choice(PAUSES))
            if (snapshot := taken(machine)) is None:
                break
            with snapshot:
                successor = stack.enter_context(Machine(machine.config, snapshot=snapshot))
            machine.close()
            machine = successor
            machine.start()
        check_ping_pong(machine, steps, rounds)


def test_two_vcpus_are_put_back_again_and_again():
    dice, rounds = random.Random(13), 5_000
    with ping_pong(rounds) as (machine, steps):
        machine.start()
        for _ in range(MOVES):
            if (snapshot := taken(machine)) is None:
                break
            with snapshot:
                time.sleep(dice.choice(PAUSES))
                put_back(machine, snapshot)
        check_ping_pong(machine, steps, rounds)
