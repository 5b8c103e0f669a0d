"""A disk goes on after a snapshot: nothing is lost, doubled or reordered."""

import copy
import errno
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from blk_device import FLUSH, IN, OUT, device_threads, disk_file
from blk_engines import engines
from blk_ranges import DISCARD, ZEROES
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import until
from saved_disk import QUEUE_SIZE, SECTOR, SECTORS, SavedDisk
from saved_states import damages, survives
from virtio_pci_guest import DEVICE, ISR

from pykvm.devices.virtio_blk import Engine, EngineFactory, Image
from pykvm.devices.virtio_blk.core.parser import Accepted
from pykvm.devices.virtio_blk.core.saved_request import RequestRules, load_request, save_request
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.devices.virtio_blk.serving.io_thread_group import IoThreadGroup
from pykvm.errors import HostError
from pykvm.memory.ram import Ram, Region
from pykvm.snapshot.fields import Fields, Saved, SnapshotError
from pykvm.virtio.constants import VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_INDIRECT_DESC

WITHOUT = st.sampled_from([0, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_IN_ORDER])
SLOW = RateLimits(iops=1)


def made(folder: str | Path, **options: object) -> SavedDisk:
    return SavedDisk(disk_file(Path(folder)), **options)


def act(disk: SavedDisk, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """One thing that a driver, the host or the user does."""
    queues = st.integers(0, len(disk.drivers) - 1)
    match draw(st.sampled_from("sssssskkkvvcffrlumi")):
        case "s":
            kind = draw(st.sampled_from([IN, OUT, OUT, FLUSH, ZEROES]))
            sector = draw(st.integers(0, SECTORS - 1))
            data = bytes([draw(st.integers(0, 255))]) * SECTOR if kind == OUT else b""
            disk.send(draw(queues), kind, sector, data)
        case "k":
            disk.kick(draw(queues))
        case "v":
            disk.threads.serve()
        case "c":
            disk.collect()
        case "f":
            disk.error = draw(st.sampled_from([0, errno.EIO, errno.ENOSPC]))
        case "r":
            disk.device.resume()
        case "l":
            disk.device.limits = SLOW
        case "u":
            disk.device.limits = RateLimits()
        case "m":
            disk.move(disk.save())
        case "i":
            disk.load(disk.save())


@settings(max_examples=examples(60), deadline=None)
@given(
    data=st.data(),
    packed=st.booleans(),
    in_order=st.booleans(),
    num_queues=st.integers(1, 3),
    without=WITHOUT,
)
def test_snapshots_at_any_moment_change_no_answer(
    data: st.DataObject, packed: bool, in_order: bool, num_queues: int, without: int
) -> None:
    with TemporaryDirectory() as folder:
        disk = made(folder, packed=packed, in_order=in_order, num_queues=num_queues)
        with closing(disk):
            disk.start(without)
            for _ in range(data.draw(st.integers(1, 40), label="steps")):
                act(disk, data.draw)
            disk.device.limits = RateLimits()
            disk.finish()


@engines()
def test_snapshots_under_load_lose_nothing(
    tmp_path: Path, factory: EngineFactory, packed: bool
) -> None:
    """With threads, which are in the middle of anything."""
    dice = random.Random(5)
    disk = made(
        tmp_path,
        engine=factory,
        threads=IoThreadGroup,
        packed=packed,
        num_queues=2,
        iothreads=2,
        in_order=True,
    )
    disk.start()
    for number in range(40):
        disk.device.resume()
        for _ in range(12):
            data = bytes([number]) * SECTOR
            kind = dice.choice([IN, OUT, OUT, FLUSH])
            sector = dice.randrange(SECTORS)
            disk.send(dice.randrange(2), kind, sector, data if kind == OUT else b"")
        for queue in (0, 1):
            disk.kick(queue)
        if number % 3:
            disk.collect()
        if number % 2:
            disk.move(disk.save())
        else:
            disk.load(disk.save())
    disk.device.resume()

    def answered() -> bool:
        disk.collect()
        return not disk.sent

    until(answered, "a request is lost")
    assert disk.answers
    assert disk.path.read_bytes() == disk.disk
    disk.close()


def test_a_disk_that_is_loaded_has_no_threads_until_it_is_resumed(tmp_path: Path) -> None:
    """Until then the process can confine itself."""
    disk = made(tmp_path, threads=IoThreadGroup)
    disk.start()
    disk.move(disk.save())
    threads = device_threads()
    disk.device.pause()  # it is quiet all the same
    assert device_threads() == threads
    disk.device.resume()
    assert len(device_threads()) == len(threads) + 1
    disk.close()


def stopped(folder: Path, without: int = 0, **options: object) -> SavedDisk:
    """A disk that keeps two writes, a read and a flush, because the first write failed."""
    disk = made(folder, **options)
    disk.start(without)
    disk.error = errno.EIO
    disk.send(0, OUT, 3, b"a" * SECTOR)
    disk.send(0, IN, 1)
    disk.send(0, OUT, 4, b"b" * SECTOR)
    disk.send(0, FLUSH, 0)
    disk.kick(0)
    disk.threads.serve()
    disk.collect()
    assert len(disk.sent) == 4
    return disk


def test_kept_requests_are_those_of_before_whatever_the_guest_did_to_its_descriptors(
    tmp_path: Path, packed: bool
) -> None:
    disk = stopped(tmp_path, VIRTIO_F_INDIRECT_DESC, packed=packed)
    fields = disk.save()
    for index in range(disk.drivers[0].size):
        disk.drivers[0].write_descriptor(index, 1 << 60, 1 << 31, 0xFFFF, 0)
    disk.move(fields)
    disk.finish()
    assert disk.answers == 4


@pytest.mark.parametrize("restart", [False, True])
def test_a_disk_is_put_back_in_place_and_answers_the_requests_of_then(
    tmp_path: Path, packed: bool, restart: bool
) -> None:
    """The driver goes back, too, with its memory."""
    disk = stopped(tmp_path, packed=packed)
    fields, ram, threads = disk.save(), bytes(disk.ram.bytes), disk.threads
    then = copy.deepcopy([(vars(driver) | {"ram": None}) for driver in disk.drivers])
    sent, order = dict(disk.sent), copy.deepcopy(disk.order)
    disk.error = 0
    disk.device.resume()
    disk.collect()
    disk.send(0, OUT, 9, b"c" * SECTOR)
    disk.kick(0)
    disk.threads.serve()
    if restart:
        disk.guest.status = 0
    disk.device.pause()
    disk.ram.bytes[:] = ram
    for driver, state in zip(disk.drivers, then, strict=True):
        vars(driver).update(state | {"ram": disk.ram})
    disk.sent, disk.order, disk.answers = sent, order, 0
    disk.load(fields)
    assert disk.threads is threads
    disk.device.resume()
    disk.collect()
    assert disk.answers == 4
    disk.disk[9 * SECTOR : 10 * SECTOR] = b"c" * SECTOR
    disk.finish()


def test_queues_that_were_reset_are_put_back_in_place(tmp_path: Path, packed: bool) -> None:
    """One that stays reset, and one that was enabled again."""
    disk = made(tmp_path, packed=packed, num_queues=3)
    disk.start()
    for queue in (0, 1):
        disk.guest.set(0x16, 2, queue)
        disk.guest.set(0x3A, 2, 1)
    driver = disk.drivers[1]
    driver.__init__(  # type: ignore[misc]
        disk.ram, size=QUEUE_SIZE, features=driver.features, base=driver.desc, heap=0x2000
    )
    disk.guest.place(1, driver.desc, driver.avail, driver.used, QUEUE_SIZE)
    threads = disk.threads
    disk.load(disk.save())
    assert disk.threads is threads
    assert [service.queue.index for service in disk.threads.services] == [1, 2]
    disk.send(1, OUT, 3, b"a" * SECTOR)
    disk.kick(1)
    disk.finish()


def test_a_disk_that_was_stopped_by_an_error_retries_at_the_resume_and_can_fail_again(
    tmp_path: Path, packed: bool
) -> None:
    disk = stopped(tmp_path, packed=packed)
    disk.move(disk.save())
    disk.device.resume()
    disk.collect()
    assert disk.answers == 0
    disk.move(disk.save())
    disk.finish()
    assert disk.answers == 4


def test_an_interrupt_follows_the_resume_because_the_last_one_may_be_lost(
    tmp_path: Path, packed: bool
) -> None:
    disk = made(tmp_path, packed=packed)
    disk.start()
    disk.move(disk.save())
    assert not disk.guest.line.level
    disk.device.resume()
    assert disk.guest.line.level
    assert disk.guest.get(0, 1, ISR) == 1
    disk.device.pause()
    disk.device.resume()
    assert not disk.guest.line.level
    disk.finish()


def test_the_cache_mode_that_the_driver_chose(tmp_path: Path) -> None:
    disk = made(tmp_path, config_wce=True)
    disk.start()
    disk.guest.set(32, 1, 0, DEVICE)
    generation = disk.guest.get(0x15, 1)
    disk.move(disk.save())
    assert not disk.device.writeback
    assert disk.guest.get(32, 1, DEVICE) == 0
    assert disk.guest.get(0x15, 1) == generation
    disk.guest.status = 0
    assert disk.device.writeback
    disk.finish()


def test_a_sync_that_failed_has_failed_for_ever(tmp_path: Path) -> None:
    disk = made(tmp_path)
    disk.start()
    disk.device.image.sync_error = errno.ENOSPC
    disk.move(disk.save())
    assert disk.device.image.sync() == errno.EIO
    disk.finish()


@pytest.mark.parametrize("same", [True, False])
def test_rate_limits_that_are_the_same_go_on_with_their_levels(tmp_path: Path, same: bool) -> None:
    disk = made(tmp_path, limits=RateLimits(bps=1, bps_max=1 << 30))  # a byte comes back in 1 s
    disk.start()
    for sector in range(40):
        disk.send(0, IN, sector)
        disk.kick(0)
        disk.threads.serve()
        disk.collect()
    full = (1 << 30) * 1_000_000_000
    fields = disk.save()
    saved = fields["functions"][1]["state"]["virtio"]["device"]
    assert saved["levels"]["bps"] < full
    if not same:
        saved["limits"]["bps"] = 3
    disk.move(fields)
    assert (disk.device.save()["levels"]["bps"] < full) == same
    disk.finish()


def test_a_halted_disk_does_not_wake_for_its_rate_limits(tmp_path: Path) -> None:
    disk = made(tmp_path, limits=RateLimits(bps=1, bps_max=1))
    disk.start()
    for sector in (0, 10):
        disk.send(0, IN, sector)
        disk.kick(0)
        disk.threads.serve()
    (service,) = disk.threads.services
    assert service.wake_ns
    disk.device.pause()
    assert not service.wake_ns
    disk.device.limits = RateLimits()
    disk.finish()


def test_a_host_that_lacks_something_does_not_lose_saved_requests(tmp_path: Path) -> None:
    disk = stopped(tmp_path)
    fields = disk.save()

    def engine(image: Image, ram: Ram) -> Engine:
        raise OSError(errno.EMFILE, "too many")

    other = SavedDisk(disk.path, engine=engine)
    with pytest.raises(HostError, match="a saved disk cannot go on"):
        other.load(fields)
    assert other.guest.status == 0
    other.close()
    disk.finish()


def test_a_new_disk_is_halted_until_it_is_resumed(tmp_path: Path, packed: bool) -> None:
    disk = made(tmp_path, packed=packed)
    disk.start()
    disk.send(0, OUT, 3, b"a" * SECTOR)
    disk.drivers[0].publish()  # and no kick
    disk.move(disk.save())
    disk.threads.serve()
    disk.collect()
    assert disk.answers == 0
    disk.device.resume()
    disk.threads.serve()
    disk.collect()
    assert disk.answers == 1
    disk.finish()


@settings(max_examples=examples(150), deadline=None)
@given(
    damage=damages(), packed=st.booleans(), in_order=st.booleans(), without=WITHOUT, data=st.data()
)
def test_a_damaged_disk_is_refused_or_works(
    damage: Callable[[Fields], Fields],
    packed: bool,
    in_order: bool,
    without: int,
    data: st.DataObject,
) -> None:
    with TemporaryDirectory() as folder:
        disk = stopped(Path(folder), without, packed=packed, in_order=in_order)
        with closing(disk):
            disk.error = 0
            fields = disk.save()
            state = fields["functions"][1]["state"]
            where = data.draw(st.sampled_from(["virtio", "device", "queue", "request"]))
            if where == "virtio":
                state["virtio"] = damage(state["virtio"])
            elif where == "device":
                state["virtio"]["device"] = damage(state["virtio"]["device"])
            else:
                (queue,) = state["virtio"]["device"]["queues"]
                if where == "queue":
                    queue["queue"] = damage(queue["queue"])
                else:
                    at = data.draw(st.integers(0, 3))
                    queue["requests"][at] = damage(queue["requests"][at])
            survives(disk.guest.host, fields)
            disk.device.resume()
            disk.threads.serve()


def request(**changes: object) -> dict[str, Any]:
    """A read of sector 1 to the middle of RAM."""
    return {
        "head": 0,
        "type": IN,
        "sector": 1,
        "status_offset": 0x9000,
        "charged": False,
        "segments": pack("<QQ", 0x8000, SECTOR),
        "ranges": b"",
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": 8}, "head is 8"),
        ({"type": 5}, "does not accept requests of type 5"),
        ({"type": 8}, "does not accept requests of type 8"),
        ({"type": DISCARD, "segments": b""}, "does not accept requests of type 11"),
        ({"type": OUT}, "does not accept requests of type 1"),
        ({"status_offset": 1 << 16}, "status_offset does not lie"),
        ({"segments": pack("<QQ", 0xFF00, SECTOR)}, "not guest RAM"),
        ({"segments": pack("<QQ", 0, (1 << 64) - 512)}, "not guest RAM"),
        ({"segments": pack("<QQ", 0, 0)}, "not guest RAM"),
        ({"segments": pack("<QQ", 0, 100)}, "has 100 bytes"),
        ({"segments": b""}, "has 0 bytes"),
        ({"segments": b"1"}, "ends within a segment"),
        ({"segments": pack("<QQ", 0, SECTOR) * 5}, "segments is no data"),
        ({"sector": 1 << 60}, "sector is"),
        ({"sector": (1 << 54) - 1}, "does not begin a block of a disk"),
        ({"ranges": pack("<QQQ", 0, 512, 0)}, "ranges is not empty"),
        ({"type": FLUSH}, "segments is not empty"),
        ({"type": ZEROES, "segments": b""}, "ends within a range"),
        ({"type": ZEROES, "segments": b"", "ranges": pack("<QQQ", 0, 0, 0)}, "impossible range"),
        ({"type": ZEROES, "segments": b"", "ranges": pack("<QQQ", 0, 1, 0)}, "not made of blocks"),
        ({"type": ZEROES, "segments": b"", "ranges": pack("<QQQ", 512, 512, 2)}, "not made of"),
        ({"more": 1}, "more means nothing"),
    ],
)
def test_a_request_that_no_driver_can_have_made_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    readonly = changes.get("type") == OUT
    rules = RequestRules([Region(0, 1 << 16, 0)], 4, readonly, SECTOR, Accepted(zeroes=True))
    with pytest.raises(SnapshotError, match=words):
        load_request(Saved("request", request(**changes)), 8, rules)


def test_a_request_is_loaded_as_it_was_saved() -> None:
    rules = RequestRules([Region(0, 1 << 16, 0)], 4, False, SECTOR, Accepted(True, True))
    ranges = {"segments": b"", "ranges": pack("<QQQ", 512, 1024, 1)}
    for one in (
        request(),
        request(head=7, type=OUT, charged=True),
        request(type=FLUSH, sector=0, segments=b""),
        request(type=DISCARD, **ranges),
        request(type=ZEROES, **ranges),
    ):
        loaded = load_request(Saved("request", one), 8, rules)
        assert save_request(loaded) == one
        assert loaded.length == (
            0 if loaded.type == FLUSH else loaded.ranges[1] if one["ranges"] else SECTOR
        )
