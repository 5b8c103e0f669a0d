"""As many disks as the bus holds, and one more."""

from pathlib import Path

import pytest

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.bare.build import build_bare_guest
from pykvm.bare.run import run_script
from pykvm.errors import UsageError
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.machine.create import MAX_DISKS

pytestmark = pytest.mark.kvm


def disks(folder: Path, count: int) -> list[DiskConfig]:
    """Disks of one sector, each full of its own number."""
    made = []
    for number in range(count):
        path = folder / f"disk{number}"
        path.write_bytes(bytes([number]) * 512)
        made.append(DiskConfig(path, serial=f"disk {number}"))
    return made


def test_the_first_and_the_last_of_as_many_as_there_can_be(tmp_path: Path) -> None:
    assert MAX_DISKS == 30, "32 devices, but for the host bridge and pvpanic"
    script = Script()
    batches = []
    for slot, nth in enumerate((0, MAX_DISKS - 1)):
        driver = BlockDriver(script, nth=nth, slot=slot)
        driver.start()
        batches.append(driver.submit([BlockRequest.read(0, 512), BlockRequest.get_id()]))
    results = run_script(script, disks(tmp_path, MAX_DISKS)).results
    answers = [[one.data for one in batch.outcomes(results)] for batch in batches]
    assert answers == [
        [bytes([nth]) * 512, f"disk {nth}".encode().ljust(20, b"\0")] for nth in (0, MAX_DISKS - 1)
    ]


def test_one_more_is_refused(tmp_path: Path) -> None:
    config = MachineConfig(kernel=build_bare_guest(), disks=disks(tmp_path, MAX_DISKS + 1))
    with pytest.raises(UsageError) as caught:
        Machine(config)
    assert str(caught.value) == "a guest cannot have 31 disks; give --disk at most 30 times"
