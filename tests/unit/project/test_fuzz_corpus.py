"""The fuzz targets on their corpus, and what must be noticed; atheris is not needed."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import __main__ as fuzzer
from fuzz.seeds import CORPUS, SEEDS
from fuzz.targets import TARGETS
from pykvm.devices.virtio_blk import DiskOptions, VirtioBlk
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_OUT
from pykvm.devices.virtio_blk.core.parser import RequestParser
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.serving.answers import Answers
from pykvm.memory.ram import Ram
from pykvm.testing.hostile_rig import GUARD, LOW, QUEUE_SIZE, Rig
from pykvm.virtio.constants import VIRTIO_F_VERSION_1
from pykvm.virtio.split import SplitQueue

INPUTS = [(target, file) for target in TARGETS for file in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize(
    ("target", "file"), INPUTS, ids=[f"{target}-{file.name}" for target, file in INPUTS]
)
def test_no_input_of_the_corpus_finds_a_fault(target: str, file: Path) -> None:
    TARGETS[target](file.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_an_input_may_end_anywhere(target: str) -> None:
    whole = max((file.read_bytes() for t, file in INPUTS if t == target), key=len)
    for end in range(min(len(whole), 60)):
        TARGETS[target](whole[:end])


def test_the_seeds_are_those_of_the_script() -> None:
    for target, made in SEEDS.items():
        for name, data in made():
            assert (CORPUS / target / name).read_bytes() == data, (
                f"run python -m fuzz.seeds: {name}"
            )


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for _, file in INPUTS) < 100 << 10


# -- what must be noticed ------------------------------------------------------------


def lenient_memory(patch: pytest.MonkeyPatch) -> None:
    def translate(ram: Ram, address: int, length: int) -> int:
        return next((r.offset + address - r.start for r in ram.regions if address >= r.start), -1)

    patch.setattr(Ram, "translate", translate)


def endless_disk(patch: pytest.MonkeyPatch) -> None:
    accept = RequestParser._accept

    def lenient(parser: RequestParser, request: Request, sector: int, length: int) -> bool:
        parser.capacity = 1 << 60
        return accept(parser, request, sector, length)

    patch.setattr(RequestParser, "_accept", lenient)


def two_answers(patch: pytest.MonkeyPatch) -> None:
    answer = Answers.executed

    def twice(answers: Answers, request: Request, finished_ns: int) -> None:
        answer(answers, request, finished_ns)
        answer(answers, request, finished_ns)

    patch.setattr(Answers, "executed", twice)


def no_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Answers, "refused", lambda answers, request, now: None)


def believed_heads(patch: pytest.MonkeyPatch) -> None:
    pop = SplitQueue.pop

    def lenient(queue: SplitQueue) -> int:
        queue.size = 1 << 16
        return pop(queue)

    patch.setattr(SplitQueue, "pop", lenient)


def no_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VirtioBlk, "reset", lambda device: None)


def stale_rings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VirtioBlk, "stop_queue", lambda device, index: None)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "mistake",
    [
        lenient_memory,
        endless_disk,
        two_answers,
        no_answer,
        believed_heads,
        no_reset,
        stale_rings,
    ],
)
def test_the_corpus_finds(mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        found = 0
        for target, file in INPUTS:
            if target == "disk":
                try:
                    TARGETS[target](file.read_bytes())
                except Exception:
                    found += 1
    assert found


@pytest.mark.parametrize("place", [0, len(GUARD) + LOW, -1])
def test_a_write_outside_guest_ram_is_noticed(place: int) -> None:
    with Rig(DiskOptions(queue_size=QUEUE_SIZE)) as rig:
        rig.buffer[place] ^= 1
        with pytest.raises(AssertionError, match="not guest RAM was written"):
            rig.serve()
        rig.buffer[place] ^= 1
        rig.works(VIRTIO_F_VERSION_1)


def test_bytes_from_outside_guest_ram_on_the_disk_are_noticed() -> None:
    with Rig(DiskOptions(queue_size=QUEUE_SIZE)) as rig:
        driver = rig.start(VIRTIO_F_VERSION_1)
        rig.request(driver, VIRTIO_BLK_T_OUT, 60, (GUARD * 2)[:512], 0)
        with pytest.raises(AssertionError, match="not guest RAM was read"):
            rig.works(VIRTIO_F_VERSION_1)


def test_ctrl_c_ends_the_fuzzer_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    monkeypatch.setattr(fuzzer, "WORK", tmp_path)
    monkeypatch.setattr(fuzzer, "_check", lambda: None)
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    assert fuzzer.main() == 128 + signal.SIGINT
    assert capsys.readouterr().err.count("\n") == 1
