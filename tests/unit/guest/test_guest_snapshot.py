"""Snapshots, forks and resets of guests without a machine."""

import gc
from dataclasses import dataclass

import pytest
from fake_guest import FakeClient, FakeGuest, FakeMachine, FakeSaved
from patience import PATIENCE, ends, in_thread, until

import pykvm
from pykvm.guest import transfers
from pykvm.guest.start import Start
from pykvm.machine.outcome import Outcome
from pykvm.machine.run_state import RunState


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch):
    """The machines that are made after the first one, each with the snapshot it began from."""
    made: list[tuple[FakeMachine, object]] = []

    def machine(start: Start, saved: object, deadline: object) -> FakeMachine:
        made.append((FakeMachine(start.config, saved is not None), saved))
        return made[-1][0]

    def watch(one: FakeGuest) -> list[tuple[FakeMachine, object]]:
        monkeypatch.setattr(Start, "machine", machine)
        return made

    return watch


def test_a_reset_goes_back_in_place_and_wakes_the_guest(fake) -> None:
    one = fake(entropy="same", clock=1)
    snapshot = one.guest.snapshot()
    one.machine.console(b"text")
    before = one.client
    one.guest.reset(snapshot)
    assert one.machine.log == ["reset while paused"]
    assert one.machine.status is RunState.RUNNING
    assert one.client is not before
    assert one.client.woken == (1_000_000_000, None, False)
    assert one.guest.console.text == ""
    one.answers(lambda command: command.ends())
    assert one.guest.run("true").status == 0


@pytest.mark.parametrize("settles", [True, False])
def test_a_snapshot_lets_the_agent_prepare_but_does_not_depend_on_it(
    fake, monkeypatch: pytest.MonkeyPatch, settles: bool
) -> None:
    monkeypatch.setattr(transfers, "SETTLE_SECONDS", PATIENCE if settles else 0)
    one = fake()
    one.client.settles = settles
    one.guest.snapshot()
    assert len(one.client.settling) == 1
    one.guest.pause()
    one.guest.snapshot()
    assert len(one.client.settling) == 1, "a guest that is paused prepares nothing"


def test_a_guest_that_ends_before_its_snapshot_is_not_saved(fake) -> None:
    one = fake()
    one.client.settles = False

    def end(events) -> None:
        one.machine.finish(Outcome.power_off(3))
        events.failed("the guest has ended")

    one.client.settle = end
    with pytest.raises(pykvm.GuestDied, match="status 3"):
        one.guest.snapshot()


def test_a_reset_ends_what_waits(fake) -> None:
    one = fake()
    one.guest.snapshot()
    process = one.guest.popen("work")
    errors = []

    def wait() -> None:
        try:
            one.guest.console.wait_for("never")
        except pykvm.GuestError as error:
            errors.append(str(error))

    run_before = one.guest.console._runs
    thread = in_thread(wait)
    while not one.guest.console._changed._waiters:
        assert one.guest.console._runs == run_before
    one.guest.reset()
    assert ends(thread)
    assert errors == ["the guest was put back, during the wait for /never/ on its console"]
    with pytest.raises(pykvm.GuestError, match="'work' failed: the guest was put back"):
        process.wait()


def test_a_guest_that_has_ended_begins_again_from_its_snapshot(fake, machines) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    made = machines(one)
    one.machine.finish(Outcome.panic("Kernel panic"))
    one.guest.wait()
    one.guest.reset()
    assert one.machine.log == ["close"]
    assert [saved for _, saved in made] == [snapshot.saved]
    assert one.guest.machine is made[0][0]
    assert one.guest.outcome is None
    one.answers(lambda command: command.ends())
    assert one.guest.run("true").status == 0


def test_without_a_snapshot_a_reset_goes_to_the_start(fake, machines) -> None:
    one = fake()
    made = machines(one)
    one.guest.reset()
    assert one.machine.log == ["close"]
    assert [saved for _, saved in made] == [None]


@pytest.mark.parametrize("kind", [pykvm.UsageError, pykvm.SnapshotError])
def test_a_guest_that_cannot_go_back_goes_on_as_it_was(fake, kind) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    snapshot.saved.problem = kind("the disk cannot go back")
    client = one.client
    process = one.guest.popen("work")
    for state in (RunState.RUNNING, RunState.PAUSED):
        one.machine.status = state
        with pytest.raises(kind, match="cannot go back"):
            one.guest.reset(snapshot)
        assert one.machine.status is state
    assert one.client is client
    assert one.machine.log == []
    one.command().ends()
    assert process.wait().status == 0


def test_a_reset_that_fails_half_way_ends_the_guest(fake) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    snapshot.saved.damage = pykvm.SnapshotError("it makes no sense")
    with pytest.raises(pykvm.SnapshotError):
        one.guest.reset(snapshot)
    assert one.guest.wait() == Outcome.error("the guest could not be put back")


def test_what_is_no_snapshot(fake) -> None:
    one = fake()
    with pytest.raises(pykvm.UsageError, match=r"^snapshot cannot be 'folder'"):
        one.guest.reset("folder")


def test_forks_begin_at_the_snapshot_and_end_together(fake, machines) -> None:
    one = fake(clock=5)
    snapshot = one.guest.snapshot()
    made = machines(one)
    with snapshot.fork(3, entropy="same") as guests:
        assert len(guests) == 3
        assert [saved for _, saved in made] == [snapshot.saved] * 3
        assert len({id(guest.machine) for guest in guests}) == 3
        woken = {guest._session.client.woken for guest in guests}
        assert len(woken) == 1
        assert woken == {(5_000_000_000, None, False)}
    assert [machine.log for machine, _ in made] == [["close"]] * 3
    for wrong in (0, -1, "3"):
        with pytest.raises(pykvm.UsageError, match=r"^count cannot be"):
            snapshot.fork(wrong)


def test_a_fork_that_fails_closes_the_others(fake, machines) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    made = machines(one)
    good = Start.machine

    def machine(start: Start, saved: object, deadline: object) -> FakeMachine:
        if len(made) == 2:
            raise pykvm.HostError("the host has no memory")
        return good(start, saved, deadline)

    Start.machine = machine
    with pytest.raises(pykvm.HostError):
        snapshot.fork(3)
    Start.machine = good
    assert [one.log for one, _ in made] == [["close"]] * 2


def test_a_restored_guest_may_have_a_trace_of_its_own(fake, machines) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    made = machines(one)
    trace = pykvm.TraceLog()
    with snapshot.restore(trace=trace), snapshot.restore():
        assert [machine.config.trace for machine, _ in made] == [trace, None]


def test_a_restored_guest_is_reset_to_where_it_began(fake, machines) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    machines(one)
    with snapshot.restore(timeout=PATIENCE) as guest:
        assert guest.timeout == PATIENCE
        guest.reset()
        assert guest.machine.log == ["reset while paused"]
        guest.machine.finish(Outcome.reset())
        guest.reset()


def test_a_snapshot_is_freed_at_the_end_of_its_block_and_with_its_last_reference(fake) -> None:
    one = fake()
    with one.guest.snapshot() as snapshot:
        saved: FakeSaved = snapshot.saved
        assert saved.closed == 0
    assert saved.closed == 1
    saved = one.guest.snapshot().saved
    gc.collect()
    assert saved.closed == 0, "the guest can be reset to it"
    one.guest.snapshot()
    gc.collect()
    assert saved.closed == 1


@dataclass
class FakeDisk:
    """Stands for a Disk."""

    config: pykvm.DiskConfig
    number: int = 5

    def check_can_go_back(self) -> None:
        """It can."""


def test_a_disk_comes_and_goes(fake) -> None:
    one = fake()
    one.answers(lambda request: request.events.done(0))
    disk = one.guest.add_disk("1M")
    assert disk.config.blank == 1 << 20
    assert disk.faults.rules == ()
    assert one.guest.disks == [disk]
    assert one.command().kind == "rescan"
    one.answers(lambda command: command.ends())
    one.guest.remove_disk(disk)
    command = b"echo 1 > /sys/bus/pci/devices/0000:00:05.0/remove"
    assert one.command(1).request.command == command
    assert one.guest.disks == []
    with pytest.raises(pykvm.UsageError, match=r"cannot be 3; give "):
        one.guest.add_disk(3)


def test_a_guest_that_does_not_let_go_keeps_its_disk(fake) -> None:
    one = fake()
    one.answers(lambda request: request.events.done(0))
    disk = one.guest.add_disk("1M")
    one.answers(lambda command: command.ends(1))
    with pytest.raises(pykvm.CommandFailed):
        one.guest.remove_disk(disk)
    assert one.guest.disks == [disk]


def test_a_reset_to_other_disks_makes_a_new_machine_with_them(fake, machines) -> None:
    one = fake()
    one.machine.disks = [FakeDisk(pykvm.DiskConfig(blank=512, faults=[]))]
    snapshot = one.guest.snapshot()
    one.machine.disks.append(FakeDisk(pykvm.DiskConfig(blank=1024, faults=[])))
    made = machines(one)
    one.guest.reset(snapshot)
    assert [saved for _, saved in made] == [snapshot.saved]
    assert [disk.blank for disk in one.guest.machine.config.disks] == [512]
    one.guest.machine.disks = [FakeDisk(pykvm.DiskConfig(blank=512))]
    one.guest.reset()
    assert one.guest.machine.log == ["reset while paused"]


def test_each_fork_has_its_own_plan_of_failures(fake, machines) -> None:
    plan = pykvm.FaultPlan([pykvm.Fault(operation="write", errno="EIO")])
    one = fake()
    one.machine.disks = [FakeDisk(pykvm.DiskConfig(blank=512, faults=plan))]
    snapshot = one.guest.snapshot()
    machines(one)
    with snapshot.fork(2) as guests:
        plans = [guest.machine.config.disks[0].faults for guest in guests]
        assert len({id(one) for one in (plan, *plans)}) == 3
        assert [len(one.rules) for one in plans] == [1, 1]


def test_a_restored_guest_that_an_error_had_stopped_runs(fake, machines) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    made = machines(one)
    good = Start.machine

    def machine(start: Start, saved: object, deadline: object) -> FakeMachine:
        new = good(start, saved, deadline)
        new.failed = True
        new.start = lambda: None
        return new

    Start.machine = machine
    with snapshot.restore():
        assert made[0][0].status is RunState.RUNNING
    Start.machine = good


def test_a_close_ends_a_reset_that_waits(fake, monkeypatch) -> None:
    one = fake()
    one.guest.snapshot()
    monkeypatch.setattr(
        "pykvm.machine.agent_link.connect",
        lambda machine, events: FakeClient(machine, events, silent=True),
    )
    errors = []

    def reset() -> None:
        try:
            one.guest.reset()
        except pykvm.GuestDied as error:
            errors.append(error)

    thread = in_thread(reset)
    until(lambda: one.machine.log)
    one.guest.close()
    assert ends(thread)
    assert len(errors) == 1


def test_a_closed_snapshot_serves_no_more_and_the_guest_goes_on(fake, tmp_path) -> None:
    one = fake()
    with one.guest.snapshot() as snapshot:
        pass
    calls = (
        one.guest.reset,
        lambda: one.guest.reset(snapshot),
        snapshot.restore,
        snapshot.verify,
        lambda: snapshot.save(tmp_path / "new"),
    )
    for call in calls:
        with pytest.raises(pykvm.UsageError, match="the snapshot is closed"):
            call()
    assert snapshot.problem().startswith("the snapshot is closed")
    assert one.machine.log == []
    assert one.machine.status is RunState.RUNNING


def test_why_a_guest_cannot_begin_here(fake, machines) -> None:
    one = fake()
    snapshot = one.guest.snapshot()
    made = machines(one)
    assert snapshot.problem() is None
    assert [machine.log for machine, _ in made] == [["close"]]
    good = Start.machine

    def machine(start: Start, saved: object, deadline: object) -> FakeMachine:
        raise pykvm.SnapshotError("it belongs to a different processor")

    Start.machine = machine
    assert snapshot.problem() == "it belongs to a different processor"
    Start.machine = good


def test_a_vcpu_that_does_not_stop_is_a_timeout_of_the_family(fake) -> None:
    one = fake()

    def pause() -> None:
        raise TimeoutError("a vCPU is busy and did not stop within 5 s")

    one.machine.pause = pause
    for call in (one.guest.pause, one.guest.reset):
        one.guest.snapshot()
        with pytest.raises(pykvm.GuestTimeout, match="a vCPU is busy"):
            call()
    assert one.machine.status is RunState.RUNNING


def test_a_start_without_a_template_is_a_warning(monkeypatch) -> None:
    original = FakeMachine.__init__

    def init(self, *arguments) -> None:
        original(self, *arguments)
        self.notices = ["booting without a template: no cache folder", "something else"]

    monkeypatch.setattr(FakeMachine, "__init__", init)
    with pytest.warns(RuntimeWarning, match="^booting without a template: no cache") as warned:
        FakeGuest(monkeypatch).guest.close()
    assert len(warned) == 1
