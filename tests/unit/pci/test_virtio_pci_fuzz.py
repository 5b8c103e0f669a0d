"""A hostile driver's random accesses to a virtio-pci function.

Invariant: no exception; the device is active exactly while the status says
so; doorbells exist exactly while it is active and BAR 0 is decoded, and at
its address; the line is low whenever nothing is pending.
"""

from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_pci_guest import DRIVER_OK, NEEDS_RESET, Guest
from virtio_pci_steps import STEP, act


def check(guest: Guest) -> None:
    function = guest.function
    status = function.state.status
    if not status & NEEDS_RESET:
        assert bool(status & DRIVER_OK) == (guest.device.activation is not None)
    at = function.bars[0].address
    bells = {address for address, _ in guest.services.doorbells}
    if at is not None and function.state.active:
        assert bells == {at + 0x3000, at + 0x3004}
    elif not status & NEEDS_RESET:
        assert not bells
    assert function.intx is not None
    assert guest.line.level <= function.intx.pending


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(STEP, max_size=30))
def test_no_sequence_of_accesses_breaks_the_transport(
    steps: list[tuple[str, int, int, int]],
) -> None:
    guest = Guest()
    try:
        for step in steps:
            act(guest, step)
            check(guest)
    finally:
        guest.host.close()
    assert guest.device.closed
    assert not guest.services.doorbells
