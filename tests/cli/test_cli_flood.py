"""A guest that does nothing but write to its devices cannot keep anybody from commanding it.

How soon he is heard is measured in the guest's own accesses: on a slow host it makes fewer.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from monitor_clients import Raw, served, with_disk
from patience import PATIENCE, until
from run_on_terminal import Terminal

from pykvm.bare import BlockDriver, Script
from pykvm.lean.records import replace
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.machine.outcome import OutcomeKind

pytestmark = pytest.mark.kvm

ENDLESS = 2**32 - 1
BDF = 2 << 3
"""The disk: after the host bridge and pvpanic."""
COMMAND, BAR0, PCI_CFG = 0x04, 0x10, 0x90
HOME = 0xE000_4000
STATUS, WRITEBACK, DOORBELL = HOME + 0x14, HOME + 0x2020, HOME + 0x3000
ONE_SECOND = 30_000
"""Exits to Python in that time, each some 30 µs. An answer takes about a hundred."""


def notify(script: Script) -> None:
    script.mmio(DOORBELL, 2, 0, ENDLESS)


def notify_by_exits(script: Script) -> None:
    for offset, size, value in ((4, 1, 0), (8, 4, 0x3000), (12, 4, 2)):
        script.pci_config(BDF, PCI_CFG + offset, size, value)
    script.pci_config(BDF, PCI_CFG + 16, 2, 0, ENDLESS)


def configure_the_device(script: Script) -> None:
    script.mmio(WRITEBACK, 1, 0, ENDLESS)


def configure_the_function(script: Script) -> None:
    script.pci_config(BDF, COMMAND, 2, 6, ENDLESS)


def place_a_bar(script: Script) -> None:
    script.pci_config(BDF, BAR0, 4, HOME, ENDLESS)


def reset(script: Script) -> None:
    script.mmio(STATUS, 1, 0, ENDLESS)


FLOODS = [
    notify,
    notify_by_exits,
    configure_the_device,
    configure_the_function,
    place_a_bar,
    reset,
]
Flood = Callable[[Script], None]


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return DiskConfig(path)


def flooding(kernel: Path, disk: DiskConfig, first: Flood, second: Flood | None) -> MachineConfig:
    script = Script()
    BlockDriver(script).start(msix=True)
    if second:
        other = Script(1, script.arena)
        second(other)
        script.spawn(other)
    script.print(b"go")
    first(script)
    config = with_disk(kernel, script, disk)
    return replace(config, cpus=2 if second else 1)


def exits(machine: Machine) -> int:
    return sum(machine.statistics()["exits"].values())


@pytest.mark.parametrize("second", [None, configure_the_function], ids=["alone", "two"])
@pytest.mark.parametrize("first", FLOODS)
def test_the_monitor_answers(
    tmp_path: Path, bare_kernel: Path, disk: DiskConfig, first: Flood, second: Flood | None
) -> None:
    path = tmp_path / "qmp"
    config = flooding(bare_kernel, disk, first, second)
    with served(path, config) as machine, Raw(path) as client:
        machine.start()
        until(lambda: b"go" in machine.console_output, "the flood")
        # Notifications are the only ones that need no exit to Python.
        until(lambda: first is notify or exits(machine) > 1000, "the flood")
        took = []
        for command in ("query-status", "query-blockstats", "stop", "cont", "query-status"):
            before = exits(machine)
            assert "return" in client.ask(command)
            took.append(exits(machine) - before)
        assert max(took) < ONE_SECOND
        assert client.ask("quit") == {"return": {}}
        assert machine.wait(PATIENCE).kind is OutcomeKind.QUIT


@pytest.mark.parametrize("first", [notify, configure_the_device])
def test_a_key_ends_the_run(
    tmp_path: Path, bare_kernel: Path, disk: DiskConfig, first: Flood
) -> None:
    config = flooding(bare_kernel, disk, first, None)
    initrd = tmp_path / "script"
    initrd.write_bytes(config.initrd)
    terminal = Terminal(
        *("--kernel", str(bare_kernel), "--append", "script", "--initrd", str(initrd)),
        *("-m", str(config.memory >> 20) + "M", "--disk", str(disk.path)),
    )
    try:
        terminal.wait_until_raw()
        terminal.expect(b"go")
        terminal.type(b"\x01s")
        terminal.expect(b"the guest is stopped")
        terminal.type(b"\x01c\x01x")
        assert terminal.finish() == 0
    finally:
        terminal.close()
