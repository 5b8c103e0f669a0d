"""Random accesses of a driver, sane and hostile, to a virtio-pci function."""

from hypothesis import strategies as st
from virtio_pci_guest import DRIVER_OK, READY, VERSION_HI, FakeDevice, Guest

from pykvm.virtio.constants import VIRTIO_F_RING_RESET

HIGH_HALF = FakeDevice.features >> 32 | VERSION_HI
SIZES = st.sampled_from([1, 2, 4, 8])
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 0xF, 0x10, 0x1000, 0x2000, 0x3000, 0xFFFF, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
FIELDS = st.one_of(
    st.sampled_from([0x00, 0x08, 0x0C, 0x10, 0x14, 0x16, 0x18, 0x1A, 0x1C, 0x20, 0x28, 0x30, 0x3A]),
    st.integers(0, 0x3FFF),
)
REGISTERS = st.one_of(st.sampled_from([0x04, 0x10, 0x14, 0x3C]), st.integers(0, 255))
ACCEPTED = [VERSION_HI, VERSION_HI | VIRTIO_F_RING_RESET >> 32, HIGH_HALF]
PLACES = st.sampled_from([0, 0x1000, 0xD000_0000, 0xE000_0000, 0xE000_4000, 0xFEE0_0000, 2**32 - 1])
STEP = st.one_of(
    st.tuples(st.just("bar"), FIELDS, SIZES, VALUES),
    st.tuples(st.just("msix"), st.integers(0, 0x900), SIZES, VALUES),
    st.tuples(st.just("config"), REGISTERS, st.sampled_from([1, 2, 4]), VALUES),
    st.tuples(st.just("move"), st.just(0), st.just(4), PLACES),
    st.tuples(st.just("status"), st.just(0), st.just(1), st.sampled_from([0, 1, 3, 11, 15, 128])),
    st.tuples(st.just("accept"), st.just(0), st.just(1), st.sampled_from([0, *ACCEPTED])),
    st.tuples(st.just("device"), st.integers(0, 2), st.just(1), st.just(0)),
    st.tuples(st.just("start"), st.integers(0, 2), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("reset"), st.integers(0, 1), st.just(1), st.sampled_from([1, 1, 0])),
)


def act(guest: Guest, step: tuple[str, int, int, int]) -> None:
    kind, offset, size, value = step
    value &= (1 << 8 * size) - 1
    function = guest.function
    match kind:
        case "bar":
            function.write(offset, size, value)
            assert function.read(offset, size) < 1 << 64
        case "msix":
            function.msix.write(offset, size, value)
            assert function.msix.read(offset, size) < 1 << 64
        case "config":
            guest.set_config(offset & -size, size, value)
            assert guest.config(offset & -size, size) < 1 << 32
        case "move":
            guest.set_config(0x10, 4, value)
        case "status":
            function.write(0x14, 1, value)
        case "accept":
            function.write(0x08, 4, 1)
            function.write(0x0C, 4, value)
        case "start":
            accepted = ACCEPTED[offset]
            for queue in range(size):
                for at, width, what in ((0x16, 2, queue), (0x1C, 2, 1)):
                    function.write(at, width, what)
            for at, width, what in ((8, 4, 1), (0xC, 4, accepted), (0x14, 1, READY | DRIVER_OK)):
                function.write(at, width, what)
        case "reset":
            function.write(0x16, 2, offset)
            function.write(0x3A, 2, 1)
            function.write(0x1C, 2, value & 1)
        case "device" if activation := guest.device.activation:
            calls = (lambda: activation.interrupt(1), activation.config_changed)
            (*calls, lambda: activation.broken("bad ring"))[offset]()
