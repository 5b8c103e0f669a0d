"""Ring, transport and device together, under random actions of a driver, in both ring formats.

The machine is a driver that may do anything at any time. As long as it keeps
its own rings in order, each of its requests gets the answer that a model of the
disk gives, however senseless the request or its register accesses are. Once it
does not, only the invariants of :mod:`pykvm.testing.hostile_rig` hold, until it starts
anew.
"""

from collections.abc import Callable
from struct import pack
from typing import Any, NamedTuple

import pytest
from effort import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pykvm.devices.virtio_blk import DiskOptions
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.errors import UsageError
from pykvm.testing.hostile_rig import HIGH_START, LOW, QUEUE_SIZE, SECTORS, Rig
from pykvm.testing.ring_driver import Buffer, RingDriver
from pykvm.virtio.constants import (
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
)

OK, IOERR, UNSUPP = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP
STATUS, QUEUE_RESET = 0x14, 0x3A
PCI_CFG = 0x90
SERIAL = "hostile"
VALUES = st.sampled_from([0, 1, 2, 3, 4, 8, 11, 15, 0x40, 0x80, 0xFFFF, 2**32 - 1, 2**64 - 1])
WIDTHS = st.sampled_from([1, 2, 4, 8])
QUEUES = st.integers(0, 1)
PLACES = st.one_of(
    st.integers(0x1000, 0x1200), st.integers(0, LOW - 64), st.just(HIGH_START), st.just(0x3000)
)
BLOCK_FEATURES = (1 << 24) - 1
OUTSIDE = 0xE000_0000


def one(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A method's name and its arguments."""
    return st.tuples(st.just(name), *arguments)


PLACE_ON_DISK = (st.integers(0, SECTORS + 1), st.integers(0, 3))
REQUESTS = st.one_of(
    one("read", *PLACE_ON_DISK),
    one("read", *PLACE_ON_DISK),
    one("write", *PLACE_ON_DISK),
    one("write", *PLACE_ON_DISK),
    one("identify", st.sampled_from([0, 1, 19, 20, 21, 64])),
    one("flush"),
    one("unknown", st.sampled_from([2, 3, 5, 9, 16, 2**31 | 1, 2**32 - 1])),
    one("ragged", st.sampled_from([1, 511, 513]), st.booleans()),
    one("short_header", st.integers(1, 15)),
    one("nowhere_to_answer"),
    one("outside", st.integers(0, 2)),
)
MISCHIEF = st.one_of(
    one("reset"),
    one("spoil", QUEUES),
    one("scribble", PLACES, st.binary(min_size=1, max_size=32)),
    one("look_through_the_window", st.integers(0, 0x1000), st.integers(0, 5), VALUES),
)
ACCESSES = st.one_of(
    one("register", st.integers(0, 0x40), WIDTHS, VALUES),
    one("register", st.integers(0, 0x3FFF), WIDTHS, VALUES),
    one("configure", st.integers(0, PCI_CFG - 8), st.sampled_from([1, 2, 4]), VALUES),
    one("register", st.integers(0x2000, 0x2040), st.just(1), VALUES),
)
HOST = st.one_of(one("pause"), one("resume"), one("resize", st.integers(0, SECTORS + 8)))


class Asked(NamedTuple):
    """A request in a ring: ``answer`` of the disk's bytes as they are when it is served."""

    head: int
    answer: Callable[[bytearray], tuple[bytes, int]]
    """(the content of all device-writable buffers afterwards, bytes written)"""


class Driver(RuleBasedStateMachine):
    """``trusted``: it has kept its rings in order since it started; ``honest``: it always does."""

    packed = False
    honest = False

    def __init__(self) -> None:
        super().__init__()
        self.disk = bytearray(SECTORS * 512)
        self.trusted = self.paused = self.spoilt = False
        self.added: dict[int, list[Asked]] = {0: [], 1: []}
        self.published: dict[int, list[Asked]] = {0: [], 1: []}
        self.stamp = 0

    @initialize(in_order=st.booleans(), ring=st.booleans())
    def make(self, in_order: bool, ring: bool) -> None:
        self.rig = Rig(
            DiskOptions(
                serial=SERIAL,
                queue_size=QUEUE_SIZE,
                num_queues=2,
                packed=self.packed,
                in_order=in_order,
            )
        )
        self.start(ring=ring, more=True, reset=True)

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            with self.rig:
                self.rig.works(self.features)

    # -- the driver's life --------------------------------------------------------

    @rule(ring=st.booleans(), more=st.booleans(), reset=st.booleans())
    def start(self, ring: bool, more: bool, reset: bool) -> None:
        self.features = VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER
        self.features |= BLOCK_FEATURES if more else VIRTIO_BLK_F_MQ  # there are two queues
        self.features |= VIRTIO_F_RING_RESET if reset else 0
        self.features |= VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC if ring else 0
        self.rig.start(self.features)
        self.forget()
        self.trusted, self.paused, self.spoilt = True, False, False

    def reset(self) -> None:
        self.rig.reset()
        self.forget()
        self.trusted = self.paused = False
        assert self.rig.read(STATUS, 1) == 0

    @precondition(lambda self: self.rig.drivers and not self.spoilt)
    @rule(queue=QUEUES)
    def renew(self, queue: int) -> None:
        """The requests of the queue are forgotten, and its new rings work."""
        self.rig.write(0x16, 2, queue)
        self.rig.write(QUEUE_RESET, 2, 1)
        if not self.rig.function.state.driver_features & VIRTIO_F_RING_RESET:
            return
        self.forget(queue)
        self.rig.drivers[queue] = self.rig.place(queue)

    def forget(self, *queues: int) -> None:
        for queue in queues or (0, 1):
            self.added[queue] = []
            self.published[queue] = []

    # -- requests -----------------------------------------------------------------

    @precondition(lambda self: self.trusted)
    @rule(queue=QUEUES, asked=st.lists(REQUESTS, min_size=1, max_size=4))
    def requests(self, queue: int, asked: list[tuple[Any, ...]]) -> None:
        for name, *arguments in asked:
            getattr(self, name)(queue, *arguments)

    def read(self, queue: int, sector: int, count: int) -> None:
        def answer(disk: bytearray) -> tuple[bytes, int]:
            if sector + count > len(disk) // 512:
                return untouched(512 * count) + bytes([IOERR]), 0 if count else 1
            data = bytes(disk[512 * sector :][: 512 * count])
            return data + bytes([OK]), len(data) + 1

        self.ask(queue, VIRTIO_BLK_T_IN, sector, b"", 512 * count, answer)

    def write(self, queue: int, sector: int, count: int) -> None:
        self.stamp += 1
        data = pack("<I", self.stamp) * 128 * count

        def answer(disk: bytearray) -> tuple[bytes, int]:
            if sector + count > len(disk) // 512:
                return bytes([IOERR]), 1
            disk[512 * sector : 512 * sector + len(data)] = data
            return bytes([OK]), 1

        self.ask(queue, VIRTIO_BLK_T_OUT, sector, data, 0, answer)

    def identify(self, queue: int, size: int) -> None:
        if not size:
            self.ask(queue, VIRTIO_BLK_T_GET_ID, 0, b"", 0, always(bytes([IOERR]), 1))
            return
        said = SERIAL.encode().ljust(20, b"\0")[:size]
        answer = said + untouched(size - len(said)) + bytes([OK])
        used = len(said) + (size == len(said))
        self.ask(queue, VIRTIO_BLK_T_GET_ID, 0, b"", size, always(answer, used))

    def flush(self, queue: int) -> None:
        self.ask(queue, VIRTIO_BLK_T_FLUSH, 2**64 - 1, b"", 0, always(bytes([OK]), 1))

    def unknown(self, queue: int, kind: int) -> None:
        self.ask(queue, kind, 0, b"", 0, always(bytes([UNSUPP]), 1))

    def ragged(self, queue: int, size: int, out: bool) -> None:
        """Not of whole sectors."""
        if out:
            answer = always(bytes([IOERR]), 1)
            self.ask(queue, VIRTIO_BLK_T_OUT, 0, bytes(size), 0, answer)
        else:
            answer = always(untouched(size) + bytes([IOERR]), 0)
            self.ask(queue, VIRTIO_BLK_T_IN, 0, b"", size, answer)

    def short_header(self, queue: int, length: int) -> None:
        self.send(queue, [bytes(length)], [512, 1], always(untouched(512) + bytes([IOERR]), 0))

    def nowhere_to_answer(self, queue: int) -> None:
        self.send(queue, [pack("<IIQ", VIRTIO_BLK_T_IN, 0, 0)], [], always(b"", 0))

    def outside(self, queue: int, far: int) -> None:
        """The header, the data or the status is not guest RAM."""

        def chain(driver: RingDriver) -> list[Buffer]:
            header = driver.put(pack("<IIQ", VIRTIO_BLK_T_IN, 0, 0))
            places = [header, driver.alloc(512), driver.put(b"\xaa")]
            places[far] = OUTSIDE
            lengths = (16, 512, 1)
            return [Buffer(places[i], lengths[i], i > 0) for i in range(3)]

        driver = self.rig.drivers[queue]
        before = len(driver.outstanding)
        try:
            head = driver.add(chain(driver), indirect=False)
        except (IndexError, MemoryError):
            return
        assert len(driver.outstanding) == before + 1
        # Not all of its buffers are readable, so only the written bytes count.
        driver.outstanding[head] = []
        self.added[queue].append(Asked(head, always(b"", 0)))

    def ask(
        self,
        queue: int,
        kind: int,
        sector: int,
        data: bytes,
        size: int,
        answer: Callable[[bytearray], tuple[bytes, int]],
    ) -> None:
        header = pack("<IIQ", kind, 0, sector)
        cut = self.stamp % 16
        readable = [piece for piece in (header[:cut], header[cut:], data) if piece]
        self.send(queue, readable, [size, 1] if size else [1], answer)

    def send(
        self,
        queue: int,
        readable: list[bytes],
        writable: list[int],
        answer: Callable[[bytearray], tuple[bytes, int]],
    ) -> None:
        try:
            head = self.rig.drivers[queue].send(readable, writable)
        except (IndexError, MemoryError):
            return  # the ring or its memory is full
        self.added[queue].append(Asked(head, answer))

    @rule(queues=st.sampled_from([(0, 1), (0, 1), (0,), (1,), ()]))
    def serve(self, queues: tuple[int, ...]) -> None:
        """Publish, notify if the device asked for that, and let it look at its rings."""
        for queue in queues if self.trusted and not self.spoilt else ():
            if self.rig.drivers[queue].publish():
                self.rig.notify(queue)
            self.published[queue] += self.added[queue]
            self.added[queue] = []
        self.rig.serve()
        held = not self.rig.function.bus_master
        if not self.trusted or self.paused or held:
            return
        if self.spoilt:
            # Earlier requests in other queues may have been answered.
            self.trusted = False
            assert self.rig.read(STATUS, 1) & VIRTIO_CONFIG_S_NEEDS_RESET
            return
        for queue, driver in enumerate(self.rig.drivers):
            expected = {asked.head: asked.answer(self.disk) for asked in self.published[queue]}
            self.published[queue] = []
            found = {head: (driver.response(head), used) for head, used in driver.collect()}
            assert found == expected
        assert not self.rig.read(STATUS, 1) & VIRTIO_CONFIG_S_NEEDS_RESET

    # -- forbidden actions -----------------------------------------------------------

    @precondition(lambda self: not self.honest)
    @rule(what=MISCHIEF)
    def mischief(self, what: tuple[Any, ...]) -> None:
        name, *arguments = what
        getattr(self, name)(*arguments)

    @rule(what=ACCESSES)
    def access(self, what: tuple[Any, ...]) -> None:
        name, *arguments = what
        getattr(self, name)(*arguments)

    def spoil(self, queue: int) -> None:
        """Make a senseless chain available."""
        if not self.trusted or self.spoilt:  # a second time could make sense again
            return
        driver = self.rig.drivers[queue]
        try:
            driver.spoil()
        except IndexError:
            return
        driver.publish()
        self.rig.notify(queue)
        self.spoilt = True

    def scribble(self, place: int, data: bytes) -> None:
        self.rig.ram.write(place, data)
        self.trusted = False

    def register(self, offset: int, size: int, value: int) -> None:
        """After DRIVER_OK only a reset of the device or of a queue does anything to the rings."""
        self.rig.read(offset, size)
        resets = (offset, size) in ((STATUS, 1), (QUEUE_RESET, 2))
        if not (resets and self.honest):
            self.rig.write(offset, size, value)
            self.trusted &= not resets

    def configure(self, register: int, size: int, value: int) -> None:
        """BARs move and vanish. Accesses that still reach the registers work.

        A device that may not be a bus master keeps what it has for later.
        """
        self.rig.config(register & -size, size, value)

    def look_through_the_window(self, at: int, length: int, value: int) -> None:
        """The PCI-cfg capability (§4.1.4.9)."""
        for offset, size, what in ((4, 1, value), (8, 4, at), (12, 4, length), (16, 4, value)):
            self.rig.config(PCI_CFG + offset, size, what)
        self.trusted = False

    # -- the host ---------------------------------------------------------------------

    @rule(what=HOST)
    def host(self, what: tuple[Any, ...]) -> None:
        name, *arguments = what
        getattr(self, name)(*arguments)

    def pause(self) -> None:
        assert self.rig.device.pause()
        self.paused = self.rig.function.state.active

    def resume(self) -> None:
        self.rig.device.resume()
        self.paused = False

    def resize(self, sectors: int) -> None:
        try:
            self.rig.device.resize(512 * sectors)
        except UsageError:
            return
        self.disk = self.disk[: 512 * sectors].ljust(512 * sectors, b"\0")

    @invariant()
    def nothing_is_as_it_must_not_be(self) -> None:
        if hasattr(self, "rig"):
            self.rig.check()


def untouched(length: int) -> bytes:
    return b"\xaa" * length


def always(response: bytes, used: int) -> Callable[[bytearray], tuple[bytes, int]]:
    return lambda disk: (response, used)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("honest", [False, True], ids=["anything", "with its rings in order"])
def test_whatever_a_driver_does_next(packed: bool, honest: bool) -> None:
    run_state_machine_as_test(
        type("Driver", (Driver,), {"packed": packed, "honest": honest}),
        settings=settings(max_examples=examples(80), stateful_step_count=40, derandomize=True),
    )
