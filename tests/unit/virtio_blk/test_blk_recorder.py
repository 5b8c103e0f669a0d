"""A recording has all writes and flushes of a disk, in their order."""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from blk_device import FLUSH, IN, IOERR, OK, OUT, Disk
from blk_ranges import DISCARD, ZEROES, segments

from pykvm.crash.model import Frontier, Model, Rules, Tear
from pykvm.crash.states import State
from pykvm.devices.virtio_blk import content, log_file
from pykvm.devices.virtio_blk.constants import SECTOR_SIZE
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.devices.virtio_blk.observe.write_log import NEVER, Entry, WriteKind, WriteLog
from pykvm.devices.virtio_blk.open import DiskConfig, open_disk
from pykvm.devices.virtio_blk.recording import Recording
from pykvm.devices.virtio_blk.serving.recorder import Recorder
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport

SECTORS = 128
WRITE, FLUSHED = WriteKind.WRITE, WriteKind.FLUSH


def block(number: int, sectors: int = 1) -> bytes:
    return number.to_bytes(4, "little") * 128 * sectors


@contextmanager
def started_disk(**options: object):
    with (
        open_disk(DiskConfig(blank=SECTORS * SECTOR_SIZE, **options)) as opened,
        FakeTransport(opened.device) as transport,
    ):
        transport.start()
        yield Disk(transport, opened.device)


def kinds(log: WriteLog) -> list[WriteKind]:
    return [entry.kind for entry in log.entries]


@pytest.mark.parametrize("packed", [False, True])
def test_requests_are_recorded_with_their_content_and_their_order(packed):
    with started_disk(packed=packed) as disk:
        disk.do(OUT, 1, block(7))
        with Recording(disk.device) as recording:
            disk.do(OUT, 2, block(1, 2))
            disk.do(ZEROES, 0, segments((5, 2), (9, 1)))
            disk.do(IN, 0, size=512)
            disk.do(FLUSH)
            recording.mark("flushed")
            disk.do(DISCARD, 0, segments((1, 1)))
            recording.end()
            disk.do(OUT, 2, block(3))
            log = recording.log
    assert [(e.kind, e.sector, e.sectors, e.data) for e in log.entries] == [
        (WRITE, 2, 2, block(1, 2)),
        (WriteKind.ZEROES, 5, 2, b""),
        (WriteKind.ZEROES, 9, 1, b""),
        (FLUSHED, 0, 0, b""),
        (WriteKind.MARK, 0, 0, b""),
        (WriteKind.DISCARD, 1, 1, b""),
    ]
    assert all(entry.ended < NEVER for entry in log.entries)
    flush = log.entries[3]
    assert all(entry.ended < flush.sent <= flush.began for entry in log.entries[:3])
    assert log.sectors == SECTORS


def test_a_flush_that_was_sent_with_a_write_does_not_cover_it():
    with started_disk() as disk, Recording(disk.device) as recording:
        heads = [disk.send(OUT, 2, block(1)), disk.send(FLUSH)]
        for head in heads:
            disk.wait(head)
        write, flush = recording.log.entries
    assert flush.sent <= write.ended
    log = WriteLog(SECTORS, [write, flush])
    assert len(Frontier(log, log.events, Rules(tear=Tear.SECTOR)).pieces) == 1
    assert Frontier(log, log.events, Rules(Model.DEVICE, Tear.SECTOR)).pieces == ()


class Ring:
    """A queue whose indexes a test sets."""

    def __init__(self, index: int = 0, taken: int = 0, offered: int = 0) -> None:
        self.index = index
        self._taken, self._offered = taken, offered

    def taken(self) -> int:
        return self._taken

    def offered(self) -> int:
        return self._offered

    def send(self, number: int = 1) -> None:
        self._offered = (self._offered + number) % (1 << 16)

    def take(self) -> None:
        self._taken = (self._taken + 1) % (1 << 16)


def request(head: int, kind: int, status: int = OK) -> SimpleNamespace:
    return SimpleNamespace(
        error=0, type=kind, head=head, status=status, sector=0, ranges=[0, 512, 0], first=0, last=0
    )


@pytest.mark.parametrize("start", [0, 1000, 65533, 65534, 65535])
def test_a_flush_covers_the_ends_that_were_shown_before_it_was_in_the_ring(start):
    recorder = Recorder(SECTORS, lambda: False)
    ring = Ring(taken=start, offered=start)
    ram = Ram.flat(4096)

    def begin(head: int, kind: int) -> None:
        ring.take()
        recorder.began(ring, request(head, kind), ram)

    def end(head: int, kind: int) -> None:
        recorder.ended(ring, request(head, kind))

    ring.send(2)
    begin(0, ZEROES)  # event 0
    begin(1, ZEROES)  # event 1
    end(0, ZEROES)  # event 2
    ring.send()  # a flush that has seen event 2
    end(1, ZEROES)  # event 3
    begin(2, FLUSH)  # event 4
    ring.send()  # a flush that has seen events 2 and 3
    end(2, FLUSH)  # event 5
    begin(3, FLUSH)  # event 6
    end(3, FLUSH)
    assert [entry.sent for entry in recorder.log().entries] == [0, 0, 3, 4]


def test_the_driver_of_one_queue_sees_the_ends_of_all_queues():
    recorder = Recorder(SECTORS, lambda: False)
    rings = Ring(0), Ring(1)
    ram = Ram.flat(4096)
    for ring in rings:
        ring.send()
        ring.take()
    recorder.began(rings[1], request(0, FLUSH), ram)  # event 0
    recorder.began(rings[0], request(0, ZEROES), ram)  # event 1
    rings[1].send()
    recorder.ended(rings[0], request(0, ZEROES))  # event 2
    rings[1].send()
    for head in (1, 2):
        rings[1].take()
        recorder.began(rings[1], request(head, FLUSH), ram)
    assert [entry.sent for entry in recorder.log().entries] == [0, 1, 0, 3]


def test_reads_between_two_flushes_may_be_any_number():
    recorder = Recorder(SECTORS, lambda: False)
    ring, ram = Ring(), Ram.flat(4096)

    def do(kind: int) -> None:
        ring.send()
        ring.take()
        recorder.began(ring, request(0, kind), ram)
        recorder.ended(ring, request(0, kind))

    do(ZEROES)
    for _ in range(40_000):
        do(IN)
    do(FLUSH)
    write, flush = recorder.log().entries
    assert flush.sent > write.ended


def test_a_request_that_fails_never_ends():
    plan = FaultPlan([Fault(operation="write", errno="EIO", count=1)])
    with started_disk(faults=plan, merge="off") as disk, Recording(disk.device) as recording:
        assert disk.do(OUT, 2, block(1))[0] == IOERR
        assert disk.do(OUT, 3, block(1))[0] == OK
        assert [entry.ended for entry in recorder_entries(recording)] == [NEVER, 2]


def test_a_failure_that_the_policy_hides_is_no_end():
    plan = FaultPlan([Fault(operation="flush", errno="EIO", count=1)])
    with started_disk(faults=plan, werror="ignore") as disk, Recording(disk.device) as recording:
        assert disk.do(FLUSH)[0] == OK
        assert [entry.ended for entry in recorder_entries(recording)] == [NEVER]


def recorder_entries(recording: Recording) -> list[Entry]:
    return list(recording.log.entries)


def test_writes_are_durable_while_the_disk_writes_through():
    with started_disk() as disk, Recording(disk.device) as recording:
        disk.do(OUT, 0, block(1))
        disk.device.write_config(32, 1, 0)
        disk.do(OUT, 1, block(1))
        disk.device.write_config(32, 1, 1)
        disk.do(OUT, 2, block(1))
        assert [entry.durable for entry in recording.log.entries] == [False, True, False]


def test_requests_that_wait_when_the_recording_begins_are_recorded():
    plan = FaultPlan([Fault(operation="write", errno="EIO", count=1)])
    with started_disk(faults=plan, werror="stop") as disk:
        head = disk.send(OUT, 2, block(1))
        disk.transport.submit()
        while not disk.device._threads.services[0].halted:
            pass
        disk.device.pause()
        with Recording(disk.device) as recording:
            disk.device.resume()
            disk.wait(head)
            log = recording.log
        assert [(e.kind, e.began, e.ended) for e in log.entries] == [(WRITE, 0, 1)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_log_leads_from_the_first_content_to_the_last(packed, seed, tmp_path):
    draw = random.Random(seed)
    with started_disk(packed=packed, iothreads=1) as disk:
        disk.do(OUT, 0, block(99, 16))
        with Recording(disk.device) as recording:
            for step in range(40):
                heads = [
                    disk.send(*_random_request(draw, 4 * step + n))
                    for n in range(draw.randint(1, 4))
                ]
                for head in heads:
                    disk.wait(head)
            recording.save(tmp_path / "saved")
            log = recording.log
        last = content.read(disk.device.image, 0, SECTORS * SECTOR_SIZE)
    base = (tmp_path / "saved/base").read_bytes()
    assert base == block(99, 16).ljust(SECTORS * SECTOR_SIZE, b"\0")
    assert log_file.load(tmp_path / "saved/log").entries == log.entries
    frontier = Frontier(log, log.events, Rules(tear=Tear.SECTOR))
    state = State(frontier, (1 << len(frontier.pieces)) - 1)
    made = bytearray(base)
    for sector, data in state.content().items():
        made[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data
    assert made == last


def _random_request(draw: random.Random, number: int) -> tuple[int, int, bytes]:
    kind = draw.choice([OUT, OUT, OUT, ZEROES, FLUSH])
    sector, sectors = draw.randrange(SECTORS - 8), draw.randint(1, 8)
    if kind == OUT:
        return kind, sector, block(number + 1, sectors)
    return kind, 0, segments((sector, sectors)) if kind == ZEROES else b""


def test_one_recording_at_a_time():
    with started_disk() as disk, Recording(disk.device) as first:
        with pytest.raises(UsageError, match="is being recorded"):
            Recording(disk.device)
        first.end()
        first.end()
        with pytest.raises(UsageError, match="has ended"):
            first.mark("late")
        with Recording(disk.device) as second:
            disk.do(OUT, 0, block(1))
            assert kinds(second.log) == [WRITE]


def test_a_guest_that_goes_back_spoils_the_recording():
    recorder = Recorder(SECTORS, lambda: False)
    recorder.spoil("the guest was put back meanwhile")
    with pytest.raises(UsageError, match="put back"):
        recorder.log()


def test_a_guest_that_writes_too_much_gets_no_log_and_takes_no_memory():
    recorder = Recorder(SECTORS, lambda: False, most=1000)
    ring = Ring()
    for head in range(5):
        ring.send()
        ring.take()
        recorder.began(ring, request(head, ZEROES), Ram.flat(4096))
    assert not recorder._open
    recorder.ended(ring, request(0, ZEROES))
    with pytest.raises(UsageError, match="wrote more than a recording keeps"):
        recorder.log()


def test_a_disk_that_is_resized_has_no_log():
    with started_disk() as disk, Recording(disk.device) as recording:
        disk.device.resize(2 * SECTORS * SECTOR_SIZE)
        with pytest.raises(UsageError, match="was resized"):
            _ = recording.log


def test_a_reset_of_the_device_leaves_the_writes_in_flight_without_an_end():
    recorder = Recorder(SECTORS, lambda: False)
    for _ in range(2):  # the driver begins again with a new queue
        ring = Ring()
        ring.send()
        ring.take()
        recorder.began(ring, request(0, ZEROES), Ram.flat(4096))
    recorder.ended(ring, request(0, ZEROES))
    assert [entry.ended for entry in recorder.log().entries] == [NEVER, 2]


def test_a_recording_is_saved_once(tmp_path):
    with started_disk() as disk:
        with Recording(disk.device) as recording:
            recording.save(tmp_path / "a")
            with pytest.raises(UsageError, match="cannot be written: file exists"):
                recording.save(tmp_path / "a")
        with pytest.raises(UsageError, match="is closed"):
            recording.save(tmp_path / "b")
    assert (tmp_path / "a/base").stat().st_size == SECTORS * SECTOR_SIZE
    assert (tmp_path / "a/base").stat().st_blocks == 0
