"""Puts a running machine back to a snapshot, in place: threads, addresses and descriptors stay."""

from pykvm.errors import reason_of
from pykvm.forms import refused
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.outcome import Outcome
from pykvm.machine.run_state import RunState
from pykvm.machine.snapshot import MachineSnapshot, check_runs
from pykvm.snapshot.fields import SnapshotError

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine


def reset(machine: "Machine", snapshot: MachineSnapshot) -> None:
    """Put ``machine`` back to ``snapshot``. See :meth:`Machine.reset`."""
    if not isinstance(snapshot, MachineSnapshot):
        raise refused("snapshot", snapshot, "give a MachineSnapshot")
    check_runs(machine, "make a new machine from the snapshot")
    with machine.still():
        # Now no disk comes or goes, and no error stops the guest.
        later = snapshot.check_reset(machine)
        stopped = machine.status is RunState.IO_ERROR
        try:
            with machine.hold_mailbox(put_back=True):
                machine.memory.put_back(snapshot.frozen)
            machine.hardware.vm.forget_translations(machine.memory.address)
            for disk in later:
                from pykvm.machine.plugging import unplug

                unplug(machine, disk)
            snapshot.load(machine, new=False)
            for vcpu in machine.hardware.vcpus:
                vcpu.mark_stopped()
        except BaseException as error:
            machine.finish(Outcome.error(f"the guest could not be put back: {error}"))
            if isinstance(error, OSError):
                raise SnapshotError(
                    f"the host cannot put the guest's memory back: {reason_of(error)}",
                    "make a new machine from the snapshot",
                ) from None
            raise
        machine.stand(snapshot.failed)
        machine.restored, machine.unseen_disks = True, snapshot.unseen_disks
    if stopped and not snapshot.failed:
        machine.resume()  # the error has not happened
