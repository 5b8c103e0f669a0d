"""A virtio-pci function goes on after a snapshot: registers, MSI-X, INTx, doorbells, the device."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_states import damages, survives
from virtio_pci_guest import DRIVER_OK, FAILED, ISR, NEEDS_RESET, READY, FakeDevice, Guest
from virtio_pci_steps import STEP, act

from pykvm.pci.host import ASSIGN_START
from pykvm.snapshot.fields import Saved, SnapshotError
from pykvm.virtio.constants import VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1

COMMON_FIELDS = [
    *((at, 4) for at in (0x00, 0x04, 0x08, 0x0C)),
    *((at, 2) for at in (0x10, 0x12, 0x16)),
    (0x14, 1),
    (0x15, 1),
]
QUEUE_FIELDS = [*((at, 2) for at in (0x18, 0x1A, 0x1C, 0x1E)), *((at, 8) for at in (32, 40, 48))]


def seen(guest: Guest) -> dict[str, Any]:
    """Everything that the driver can read, and the connections to the machine."""
    function, services = guest.function, guest.services
    found: dict[str, Any] = {
        "registers": [function.read(*field) for field in COMMON_FIELDS],
        "config": [guest.config(at) for at in range(0, 256, 4)],
        "table": [function.msix.read(at, 4) for at in range(0, 48, 4)],
        "pending": function.msix.read(function.msix.size // 2, 8),
        "messages": [vector.message for vector in guest.vectors],
        "line": guest.line.level,
        "doorbells": sorted(services.doorbells),
        "held": guest.device.held,
        "device": guest.device.save(),
        "active": guest.device.activation is not None,
    }
    if function.state.status & NEEDS_RESET:  # then it makes no difference until the reset
        del found["doorbells"], found["device"], found["active"]
    select = function.read(0x16, 2)
    for queue in range(3):
        function.write(0x16, 2, queue)
        found[f"queue {queue}"] = [function.read(*field) for field in QUEUE_FIELDS]
    function.write(0x16, 2, select)
    return found


@pytest.fixture(autouse=True)
def _closed_guests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Close the guests of a test, but for tests of many examples, which close their own."""
    made: list[Guest] = []
    begin = Guest.__init__

    def keep(self: Guest) -> None:
        begin(self)
        made.append(self)

    if not hasattr(request.function, "hypothesis"):
        monkeypatch.setattr(Guest, "__init__", keep)
    yield
    for guest in made:
        guest.host.close()


def load(guest: Guest, fields: object) -> None:
    guest.host.load(Saved("pci", fields))


def restored(guest: Guest) -> Guest:
    """A new machine with the state of ``guest``."""
    other = Guest()
    load(other, guest.host.save())
    return other


def interrupts(guest: Guest) -> list[tuple[int, int] | None]:
    return [vector.delivered() for vector in guest.vectors]


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(STEP, max_size=25), st.lists(STEP, max_size=12), st.lists(STEP, max_size=12))
def test_a_restored_function_behaves_as_the_saved_one(before, after, between):
    guest, other = Guest(), Guest()
    for step in before:
        act(guest, step)
    fields = guest.host.save()
    expected = seen(guest)
    for step in between:
        act(other, step)
    interrupts(guest), interrupts(other)
    load(other, fields)
    assert seen(other) == expected
    interrupts(other)
    for step in after if not guest.function.state.status & NEEDS_RESET else ():
        act(guest, step)
        act(other, step)
    assert seen(other) == seen(guest)
    assert interrupts(other) == interrupts(guest)
    for one in (guest, other):
        one.host.close()
        assert not one.services.doorbells


def test_a_driver_goes_on_where_it_was():
    guest = Guest()
    guest.use_msix()
    guest.start()
    guest.set(0x16, 2, 1)
    guest.set(0x1A, 2, 2)
    other = restored(guest)
    activation = other.device.activation
    assert activation
    assert activation.features == VIRTIO_F_VERSION_1
    assert [queue.size for queue in activation.queues if queue] == [8, 8]
    activation.interrupt(1)
    assert interrupts(other) == [None, None, (0xFEE00000, 0x42)]
    assert other.services.doorbells.keys() == {(ASSIGN_START + 0x3000 + 4 * q, 0) for q in (0, 1)}


def test_a_state_in_place_touches_no_doorbell_and_no_route_that_stays():
    guest = Guest()
    guest.use_msix()
    guest.start()
    fields = guest.host.save()
    routes = [vector.routes for vector in guest.vectors]
    guest.services.bind_doorbell = guest.services.unbind_doorbell = None  # type: ignore[assignment,method-assign]
    load(guest, fields)
    assert [vector.routes for vector in guest.vectors] == routes
    assert guest.device.resets == 0
    del guest.services.bind_doorbell, guest.services.unbind_doorbell


def test_a_doorbell_of_a_bar_that_the_guest_moved_is_bound_once():
    """KVM takes milliseconds for each change."""
    guest, other = Guest(), Guest()
    guest.start()
    guest.set_config(0x10, 4, 0xD000_0000)
    other.services.unbind_doorbell = None  # type: ignore[assignment,method-assign]
    load(other, guest.host.save())
    assert {at for at, _ in other.services.doorbells} == {0xD000_3000, 0xD000_3004}
    del other.services.unbind_doorbell


def test_interrupts_of_masked_vectors_wait_in_the_restored_machine():
    guest = Guest()
    guest.use_msix(masked=True)
    guest.start()
    guest.set(0x16, 2, 0)
    guest.set(0x1A, 2, 1)
    assert guest.device.activation
    guest.device.activation.interrupt(0)
    other = restored(guest)
    assert interrupts(other) == [None, None, None]
    base = other.msix_base
    assert other.services.load(base + other.function.msix.size // 2, 4) == 0b010
    other.services.store(base + 16 + 12, 4, 0)
    assert interrupts(other) == [None, (0xFEE00000, 0x41), None]
    # It waits in the saved machine, too.
    guest.services.store(base + 16 + 12, 4, 0)
    assert interrupts(guest) == [None, (0xFEE00000, 0x41), None]


def test_a_line_that_was_raised_is_raised_until_the_driver_reads_the_status():
    guest = Guest()
    guest.start()
    assert guest.device.activation
    guest.device.activation.interrupt(0)
    other = restored(guest)
    assert other.line.level
    assert other.get(0, 1, ISR) == 1
    assert not other.line.level


def test_a_change_of_the_configuration_that_nobody_has_read_is_announced_again():
    guest = Guest()
    guest.use_msix()
    guest.start()
    guest.set(0x10, 2, 0)
    assert guest.device.activation
    guest.device.activation.config_changed()
    other = restored(guest)
    assert interrupts(other) == [(0xFEE00000, 0x40), None, None]


def test_a_device_that_needs_a_reset_needs_it_in_the_restored_machine():
    guest = Guest()
    guest.start()
    assert guest.device.activation
    guest.device.activation.broken("the ring is bad")
    other = restored(guest)
    assert other.status == READY | DRIVER_OK | NEEDS_RESET
    assert other.function.state.reason == "the ring is bad"
    assert other.device.activation is None
    assert not other.services.doorbells
    other.status = 0
    assert other.start()


def test_a_queue_that_was_reset_can_be_enabled_in_the_restored_machine():
    guest = Guest()
    guest.negotiate(VIRTIO_F_VERSION_1 | VIRTIO_F_RING_RESET)
    guest.place(0, 0x1000, 0x2000, 0x3000, 8)
    guest.status = READY | DRIVER_OK
    guest.set(0x16, 2, 0)
    guest.set(0x3A, 2, 1)
    other = restored(guest)
    assert other.device.activation
    assert other.device.activation.queues == [None, None]
    other.place(0, 0x4000, 0x5000, 0x6000, 4)
    assert [queue.size for queue in other.device.started] == [4]


def changed(guest: Guest, **changes: object) -> dict[str, Any]:
    """The saved state, with other fields of the registers."""
    fields = guest.host.save()
    fields["functions"][1]["state"]["virtio"].update(changes)
    return fields


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": DRIVER_OK}, "no driver reaches the status 0x4"),
        ({"status": 0x20}, "no driver reaches the status 0x20"),
        ({"driver_features": 1 << 63}, "not offered"),
        ({"driver_features": 0}, "VERSION_1"),
        ({"queues": []}, "2 entries"),
        ({"queue_select": 1 << 16}, "queue_select is 65536"),
    ],
)
def test_registers_that_no_driver_leaves_are_refused(changes: dict[str, Any], words: str):
    guest, other = Guest(), Guest()
    guest.start()
    with pytest.raises(SnapshotError, match=words):
        load(other, changed(guest, **changes))
    assert other.status == 0
    assert other.device.activation is None
    assert other.start()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"desc": 1 << 40}, "queue 1: the descriptor table"),
        ({"size": 3}, "queue 1: the queue size 3"),
        ({"size": 16}, "size is 16, not 1 to 8"),
        ({"served": False}, "queue 1 cannot be served"),
        ({"enabled": False}, "served and not enabled"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(changes: dict[str, Any], words: str):
    guest, other = Guest(), Guest()
    guest.start()
    queues = guest.function.state.save()["queues"]
    with pytest.raises(SnapshotError, match=words):
        load(other, changed(guest, queues=[queues[0], {**queues[1], **changes}]))
    assert other.start()


def test_failed_is_a_status_of_its_own():
    guest = Guest()
    guest.status = FAILED
    assert restored(guest).status == FAILED


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(STEP, max_size=15), damages(), st.lists(STEP, max_size=15))
def test_a_damaged_function_is_refused_or_answers_every_access(before, damage, after):
    guest, other = Guest(), Guest()
    for step in before:
        act(guest, step)
    survives(other.host, damage(guest.host.save()))
    for step in after if not other.function.state.status & NEEDS_RESET else ():
        act(other, step)
    for one in (guest, other):
        one.host.close()
    assert not other.services.doorbells


def test_kicks_of_before_do_no_harm():
    guest = Guest()
    guest.start()
    os.eventfd_write(guest.kick(0), 1)
    other = restored(guest)
    assert not other.kicked(0)
    assert isinstance(other.device, FakeDevice)
