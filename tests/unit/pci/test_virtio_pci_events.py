"""virtio-pci as a driver sees it: interrupts, notifications and the PCI-cfg window."""

import os
from collections.abc import Iterator

import pytest
from virtio_pci_guest import (
    ACKNOWLEDGE,
    COMMON,
    DEVICE,
    ISR,
    NO_VECTOR,
    NOTIFY,
    PCI_CFG,
    FakeDevice,
    Guest,
    plugged_in,
)

from pykvm.memory.ram import Ram
from pykvm.pci.virtio_pci import VirtioPci
from pykvm.testing.fake_pci_services import FakePciServices


@pytest.fixture
def guest() -> Iterator[Guest]:
    with plugged_in() as guest:
        yield guest


# -- interrupts ------------------------------------------------------------------------


def test_intx_rises_with_the_isr_and_falls_with_its_reading(guest: Guest) -> None:
    activation = guest.start()
    activation.interrupt(1)
    assert guest.line.edges == 1
    assert guest.config(6, 2) & 8
    activation.config_changed()
    assert guest.get(0, 1, ISR) == 3
    assert not guest.line.level
    assert not guest.config(6, 2) & 8
    assert guest.get(0, 1, ISR) == 0
    activation.interrupt(0)
    assert guest.line.edges == 2
    guest.status = 0  # reset lowers it as well
    assert not guest.line.level


def test_intx_can_be_disabled_in_the_command_register(guest: Guest) -> None:
    activation = guest.start()
    guest.set_config(4, 2, 0x402)
    activation.interrupt(0)
    assert not guest.line.level
    assert guest.config(6, 2) & 8
    guest.set_config(4, 2, 0x002)
    assert guest.line.level


def test_msix_delivers_each_event_to_its_vector_without_line(guest: Guest) -> None:
    guest.use_msix()
    guest.set(0x10, 2, 0)
    for queue in (0, 1):
        guest.set(0x16, 2, queue)
        guest.set(0x1A, 2, 1 + queue)
        assert guest.get(0x1A, 2) == 1 + queue
    activation = guest.start()
    exits = guest.services.exits
    activation.interrupt(0)
    activation.interrupt(1)
    activation.config_changed()
    assert guest.services.exits == exits
    assert [vector.delivered() for vector in guest.vectors] == [
        (0xFEE00000, 0x40 + index) for index in range(3)
    ]
    assert not guest.config(6, 2) & 8  # the Interrupt Status bit is INTx's
    assert guest.get(0, 1, ISR) == 2  # of the configuration; queues set theirs for INTx alone
    assert guest.get(0, 1, ISR) == 0
    assert guest.line.edges == 0


def test_a_configuration_change_without_a_vector_shows_in_the_isr(guest: Guest) -> None:
    guest.use_msix()
    guest.start().config_changed()
    assert guest.get(0, 1, ISR) == 2
    assert not any(vector.delivered() for vector in guest.vectors)
    assert guest.line.edges == 0


def test_a_change_announced_by_msix_needs_no_read_of_the_isr(guest: Guest) -> None:
    guest.use_msix()
    guest.set(0x10, 2, 0)
    activation = guest.start()
    for _ in range(2):
        activation.config_changed()
        assert guest.vectors[0].delivered() == (0xFEE00000, 0x40)
    guest.status = 0
    assert guest.get(0, 1, ISR) == 0


@pytest.mark.parametrize("vector", [3, 100, NO_VECTOR])
def test_vectors_that_do_not_exist_become_no_vector(guest: Guest, vector: int) -> None:
    guest.use_msix()
    guest.set(0x10, 2, vector)
    guest.set(0x1A, 2, vector)
    assert guest.get(0x10, 2) == guest.get(0x1A, 2) == NO_VECTOR
    activation = guest.start()
    activation.interrupt(0)
    activation.config_changed()
    assert not any(v.delivered() for v in guest.vectors)
    assert guest.line.edges == 0


def test_enabling_msix_lowers_the_line(guest: Guest) -> None:
    activation = guest.start()
    activation.interrupt(0)
    assert guest.line.edges == 1
    guest.use_msix()
    assert not guest.line.level


# -- bus mastering ----------------------------------------------------------------------


def test_a_device_is_held_while_its_function_is_no_bus_master(guest: Guest) -> None:
    assert not guest.device.held  # Guest has set the bit, as drivers do first
    for command, held in ((2, True), (0, True), (6, False), (4, False), (0x400, True), (6, False)):
        guest.set_config(4, 2, command)
        assert guest.device.held == held
    guest.set_config(4, 1, 2)
    guest.start()
    assert guest.device.held
    guest.status = 0
    assert guest.device.held
    guest.set_config(4, 1, 6)
    assert not guest.device.held


def test_after_power_on_a_device_is_held() -> None:
    device = FakeDevice()
    function = VirtioPci(device, Ram.flat(4096), FakePciServices())
    assert device.held
    function.close()


# -- notifications ---------------------------------------------------------------------


def test_doorbells_exist_while_active_and_cause_no_exit(guest: Guest) -> None:
    assert not guest.services.doorbells
    guest.start()
    base = guest.address(NOTIFY)
    assert set(guest.services.doorbells) == {(base, 0), (base + 4, 0)}
    guest.set(0x16, 2, 1)
    offset = guest.get(0x1E, 2) * 4
    exits = guest.services.exits
    guest.services.store(base + offset, 2, 1)
    assert guest.services.exits == exits
    assert guest.kicked(1)
    assert not guest.kicked(0)


def test_notifications_of_all_queues_are_counted(guest: Guest) -> None:
    guest.start()
    before = guest.function.notifications
    for queue in (0, 1, 1):
        os.eventfd_write(guest.kick(queue), 1)
    assert guest.function.notifications == before + 3


def test_doorbells_follow_the_bar(guest: Guest) -> None:
    guest.start()
    guest.set_config(0x10, 4, 0xD000_0000)
    assert {at for at, _ in guest.services.doorbells} == {0xD000_3000, 0xD000_3004}
    guest.set_config(4, 2, 0)
    assert not guest.services.doorbells
    guest.set_config(4, 2, 2)
    guest.services.store(0xD000_3000, 2, 0)
    assert guest.kicked(0)
    guest.set_config(0x10, 4, 0xFFFFFFFF)
    assert not guest.services.doorbells
    guest.set_config(0x10, 4, 0x1000)  # over RAM
    assert not guest.services.doorbells


def test_two_functions_at_one_address_never_share_a_doorbell(guest: Guest) -> None:
    other = Guest(guest.host, guest.services)
    guest.start()
    other.start()
    home = guest.config(0x10)
    theirs = other.config(0x10)
    guest.set_config(0x10, 4, theirs)  # the lower device number wins
    assert {at for at, _ in guest.services.doorbells} == {theirs + 0x3000, theirs + 0x3004}
    assert guest.services.doorbells[theirs + 0x3000, 0] == guest.kick(0)
    guest.set_config(0x10, 4, home)
    assert len(guest.services.doorbells) == 4
    assert guest.services.doorbells[theirs + 0x3000, 0] == other.kick(0)


def test_a_notification_that_exits_still_arrives(guest: Guest) -> None:
    guest.start()
    at = guest.address(NOTIFY)
    guest.services.mmio.write(at + 4, 4, 1)
    assert guest.kicked(1)
    guest.services.mmio.write(at + 2, 1, 0)
    assert guest.kicked(0)
    guest.services.mmio.write(at + 8, 2, 2)  # no such queue
    assert not guest.kicked(0)
    assert guest.get(0, 2, NOTIFY) == 0


def test_a_kick_before_driver_ok_or_after_reset_is_dropped(guest: Guest) -> None:
    guest.negotiate()
    guest.set(0, 2, 0, NOTIFY)
    guest.start()
    assert not guest.kicked(0)
    guest.status = 0
    guest.set(0, 2, 0, NOTIFY)
    guest.drivers.clear()
    guest.start()
    assert not guest.kicked(0)


# -- the PCI-cfg window ------------------------------------------------------------------


def window(guest: Guest, bar: int, offset: int, length: int) -> int:
    at = guest.caps[PCI_CFG][0]
    guest.set_config(at + 4, 1, bar)
    guest.set_config(at + 8, 4, offset)
    guest.set_config(at + 12, 4, length)
    return at + 16


def test_the_window_reads_and_writes_the_bar(guest: Guest) -> None:
    data = window(guest, 0, guest.caps[DEVICE][2] + 4, 4)
    assert guest.config(data) == 0x07060504
    data = window(guest, 0, guest.caps[COMMON][2] + 0x14, 1)
    guest.set_config(data, 1, ACKNOWLEDGE)
    assert guest.status == ACKNOWLEDGE
    assert guest.config(data, 1) == ACKNOWLEDGE
    data = window(guest, 1, 12, 4)
    assert guest.config(data) == 1  # the MSI-X table


def test_a_whole_driver_can_work_through_the_window(guest: Guest) -> None:
    guest.start()
    data = window(guest, 0, guest.caps[NOTIFY][2] + 4, 2)
    guest.set_config(data, 2, 1)
    assert guest.kicked(1)
    data = window(guest, 0, guest.caps[COMMON][2] + 0x14, 1)
    guest.set_config(data, 1, 0)
    assert guest.status == 0


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [
        (0, 0x14, 0), (0, 0x14, 3), (0, 0x14, 8), (0, 0x15, 2), (0, 0x4000, 4), (0, 0x3FFF, 4),
        (0, 0xFFFFFFFC, 4), (2, 0, 4), (6, 0, 4), (255, 0, 4), (1, 0xFFFFFFFF, 1),
        (0, 0x14, 0xFFFFFFFF),
    ],
)  # fmt: skip
def test_an_impossible_window_does_nothing(
    guest: Guest, bar: int, offset: int, length: int
) -> None:
    data = window(guest, bar, offset, length)
    guest.set_config(data, 4, 0xFFFFFFFF)
    guest.config(data)
    assert guest.status == 0
