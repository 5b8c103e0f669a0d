"""A saved recording: its survivors are checked, reduced and written as images."""

import multiprocessing
import random
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from crash_logs import SECTORS, base, random_log
from patience import patience
from test_crash_states import log_of

from pykvm.crash import checks
from pykvm.crash.checks import Survivor
from pykvm.crash.description import describe
from pykvm.crash.dm_log import parsed
from pykvm.crash.model import Frontier, Rules, Tear
from pykvm.crash.recorded import Recorded
from pykvm.crash.states import Cuts, State, cuts, states
from pykvm.crash.working_copy import WorkingCopy
from pykvm.devices.virtio_blk import log_file
from pykvm.devices.virtio_blk.observe.write_log import Entry, WriteKind, WriteLog
from pykvm.errors import UsageError

SIZE = SECTORS * 512
TORN = Rules(tear=Tear.SECTOR)


def whole(state) -> bytes:
    content = state.content()
    return b"".join(content.get(sector, base(sector)) for sector in range(SECTORS))


def saved(folder: Path, log: WriteLog) -> Recorded:
    folder.mkdir(exist_ok=True)
    log_file.save(log, folder / "log")
    (folder / "base").write_bytes(b"".join(map(base, range(log.sectors))))
    return Recorded(folder)


def sector(survivor: Survivor, number: int) -> bytes:
    with Path(survivor.path).open("rb") as file:
        file.seek(512 * number)
        return file.read(512)


def fourth_survives_the_fifth(survivor: Survivor) -> None:
    """Fails where sector 4 is lost and sector 5 is not."""
    lost = [sector(survivor, number) == base(number) for number in (4, 5)]
    if lost[0] and not lost[1]:
        raise AssertionError("the order is wrong")


LOG = log_of((0, 4), "flush", (4, 1), "sent", (5, 1), "flush")
"""Nothing orders the writes of sectors 4 and 5."""


@pytest.mark.parametrize("seed", range(20))
def test_a_working_copy_has_each_state_whatever_a_check_has_written(seed, tmp_path):
    log = random_log(seed)
    (tmp_path / "base").write_bytes(b"".join(map(base, range(SECTORS))))
    draw = random.Random(seed)
    with WorkingCopy(tmp_path / "base", SIZE) as copy:
        chosen = list(
            states(log, cuts(log, Cuts.REQUEST), Rules(tear=Tear.SECTOR), most=100, seed=1)
        )
        draw.shuffle(chosen)
        for state in chosen:
            copy.take_on(state)
            with Path(copy.path).open("r+b") as file:
                assert file.read() == whole(state)
                file.seek(draw.randrange(SIZE - 700))
                file.write(draw.randbytes(700))


@pytest.mark.parametrize("size", [0, 512, 2 * SIZE])
def test_a_check_cannot_change_the_size_of_a_working_copy(size, tmp_path):
    (tmp_path / "base").write_bytes(bytes(SIZE))
    with (
        WorkingCopy(tmp_path / "base", SIZE) as copy,
        Path(copy.path).open("r+b") as file,
        pytest.raises(PermissionError),
    ):
        file.truncate(size)


def test_a_working_copy_keeps_the_holes_of_a_large_image(tmp_path):
    with (tmp_path / "base").open("wb") as file:
        file.truncate(1 << 33)
    with WorkingCopy(tmp_path / "base", 1 << 33) as copy:
        copy.take_on(next(states(LOG, [2], Rules(tear=Tear.SECTOR), most=1, seed=1)))
        assert Path(copy.path).stat().st_blocks <= 64


def test_the_wrong_order_is_found_and_reduced_to_one_lost_write(tmp_path):
    recorded = saved(tmp_path / "r", LOG)
    report = recorded.explore([fourth_survives_the_fifth])
    assert report.coverage.complete
    assert {failure.reason for failure in report.failures} == {"the order is wrong"}
    assert report.checked == report.coverage.chosen
    assert "complete" in str(report)
    smallest = recorded.minimise(report.failures[-1].id, [fourth_survives_the_fifth])
    assert describe(smallest) == [
        "the power is cut after event 8 of 11, after the mark 'sent'",
        "write 2 (sector 4) is lost",
    ]
    assert recorded.problem(smallest.id, [fourth_survives_the_fifth]) == "the order is wrong"
    recorded.write_image(smallest.id, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == whole(smallest)


def test_processes_find_what_threads_find(tmp_path):
    recorded = saved(tmp_path / "r", LOG)
    checks_ = [fourth_survives_the_fifth]
    # This process has threads, so it cannot be forked safely.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        found = recorded.explore(checks_, executor=processes, workers=2)
    assert found.failures == recorded.explore(checks_).failures


def test_a_write_that_a_flush_orders_passes(tmp_path):
    ordered = log_of((0, 4), "flush", (4, 1), "flush", (5, 1), "flush")
    report = saved(tmp_path / "r", ordered).explore([fourth_survives_the_fifth])
    assert report.failures == []
    assert report.coverage.complete


def test_a_check_that_breaks_is_no_pass(tmp_path):
    def broken(survivor: Survivor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        saved(tmp_path / "r", LOG).explore([broken])


def test_a_check_sees_the_marks_before_the_cut(tmp_path):
    seen = set()
    saved(tmp_path / "r", LOG).explore(
        [lambda survivor: seen.add(tuple(survivor.marks))], at=Cuts.REQUEST
    )
    assert seen == {(), ("sent",)}


def test_progress_counts_up(tmp_path):
    counts = []
    log = WriteLog(SECTORS, [Entry(WriteKind.ZEROES, 0, 1, sector=0, sectors=SECTORS)])
    report = saved(tmp_path / "r", log).explore(
        [lambda survivor: None],
        rules=TORN,
        most=100,
        progress=lambda report: counts.append(report.checked),
    )
    assert counts == sorted(counts)
    assert counts[-1] == report.checked == 100
    assert "bounded" in str(report)


def test_an_exported_log_is_that_of_the_recording(tmp_path):
    recorded = saved(tmp_path / "r", LOG)
    recorded.export(tmp_path / "dm")
    assert len(parsed((tmp_path / "dm").read_bytes())) == len(LOG.entries) + 1


def test_what_cannot_be_read_or_written_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Recorded(tmp_path / "missing")
    recorded = saved(tmp_path / "r", LOG)
    name = next(states(LOG, [2], Rules(tear=Tear.SECTOR), most=1, seed=1, base=base)).id
    with pytest.raises(UsageError, match="cannot be written"):
        recorded.write_image(name, tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        recorded.export(tmp_path)
    with pytest.raises(UsageError, match="passes the check"):
        recorded.minimise(name, [fourth_survives_the_fifth])
    (tmp_path / "r/base").write_bytes(b"short")
    with pytest.raises(UsageError, match="shorter"):
        recorded.explore([fourth_survives_the_fifth])


@pytest.fixture(scope="module")
def ext4_image(tmp_path_factory) -> Path:
    """An image of 1 MiB with a clean filesystem, which has a folder and a file."""
    path = tmp_path_factory.mktemp("ext4") / "image"
    tree = path.parent / "tree"
    (tree / "a folder").mkdir(parents=True)
    (tree / "a folder" / "a file").write_bytes(b"content\0" * 300)
    (tree / "empty").touch()
    command = ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", tree, path, "1M"]
    subprocess.run(command, check=True)
    return path


def test_a_check_reads_the_filesystem(ext4_image):
    survivor = Survivor(str(ext4_image), [])
    checks.ext4(survivor)
    assert survivor.listdir() == ["a folder", "empty", "lost+found"]
    assert survivor.listdir("/a folder") == ["a file"]
    assert survivor.read("/a folder/a file") == b"content\0" * 300
    assert survivor.read("/empty") == b""
    assert survivor.exists("/empty")
    assert not survivor.exists("/missing")
    with pytest.raises(AssertionError, match="/missing is missing"):
        survivor.read("/missing")
    with pytest.raises(ValueError, match="no absolute name"):
        survivor.read('/a" file')


def test_a_damaged_filesystem_fails(ext4_image, tmp_path):
    damaged = tmp_path / "damaged"
    content = bytearray(ext4_image.read_bytes())
    content[4096:200_000] = bytes(200_000 - 4096)
    damaged.write_bytes(content)
    with pytest.raises(AssertionError, match="Root inode is not a directory"):
        checks.ext4(Survivor(str(damaged), []))


def test_a_description_names_torn_and_lost_writes_and_the_open_flush():
    log = log_of((0, 4), (6, 1), (8, 8), "flush")
    frontier = Frontier(log, cuts(log, Cuts.FLUSH)[0], Rules(tear=Tear.SECTOR))
    lost = {0, 2, 4}  # sectors 0, 2 and 6
    kept = sum(1 << n for n in range(len(frontier.pieces)) if n not in lost)

    assert describe(State(frontier, kept)) == [
        "the power is cut after event 7 of 8, before flush 3 ends",
        "write 0 (sectors 0 to 3) is torn, and loses sectors 0, 2",
        "write 1 (sector 6) is lost",
    ]


def test_a_working_copy_survives_holes_that_a_check_makes(tmp_path):
    (tmp_path / "base").write_bytes(b"".join(map(base, range(SECTORS))))
    log = log_of((0, 1))
    with WorkingCopy(tmp_path / "base", SIZE) as copy:
        for state in states(log, [2], Rules(tear=Tear.SECTOR), most=2, seed=1):
            copy.take_on(state)
            assert Path(copy.path).read_bytes() == whole(state)
            subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(SIZE), copy.path], check=True)


def test_few_states_are_spread_over_the_workers(tmp_path):
    names = set()
    log = WriteLog(SECTORS, [Entry(WriteKind.ZEROES, 0, 1, sector=0, sectors=SECTORS)])
    both = threading.Barrier(2, timeout=patience())

    def check(survivor: Survivor) -> None:
        name = threading.current_thread().name
        if name not in names:
            names.add(name)
            both.wait()

    saved(tmp_path / "r", log).explore([check], rules=TORN, most=20, workers=2)
    assert len(names) == 2


@pytest.mark.parametrize(
    "arguments", [{"checks": []}, {"most": 0}, {"workers": -1}, {"most": "many"}]
)
def test_nothing_to_do_is_a_mistake(tmp_path, arguments):
    with pytest.raises(UsageError):
        saved(tmp_path / "r", LOG).explore(**arguments)


def test_many_legal_states_are_counted_by_their_size(tmp_path):
    log = WriteLog(20_000, [Entry(WriteKind.ZEROES, 0, 1, sector=0, sectors=20_000)])
    (tmp_path / "r").mkdir()
    log_file.save(log, tmp_path / "r/log")
    (tmp_path / "r/base").write_bytes(b"\1" * 512 * 20_000)
    report = Recorded(tmp_path / "r").explore([lambda survivor: None], rules=TORN, most=3)
    assert "bounded: more than 2^20000 legal states" in str(report)
