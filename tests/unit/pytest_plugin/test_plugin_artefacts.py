"""The files that tests leave."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pykvm
from pykvm.pytest_plugin.artefacts import Artefacts, slug, trace_text
from pykvm.trace.log import TraceLog
from pykvm.trace.reader import Reader


@given(st.text(min_size=1, max_size=300))
def test_a_name_is_fit_for_a_folder(name: str) -> None:
    made = slug(name)
    assert made == Path(made).name
    assert made[0] not in ".-"
    assert 0 < len(made) <= 80
    assert made.isascii()


@given(st.lists(st.text(min_size=1, max_size=100), unique=True, max_size=5))
def test_different_tests_have_different_folders(names: list[str]) -> None:
    assert len({slug(name) for name in names}) == len(names)


def test_a_folder_is_made_with_the_first_file(tmp_path: Path) -> None:
    artefacts = Artefacts(lambda: tmp_path / "deep/base", "test")
    artefacts.write("console.txt", "")
    assert not artefacts
    assert list(tmp_path.iterdir()) == []
    artefacts.write("guest-1/console.txt", "text")
    assert artefacts
    assert (tmp_path / "deep/base/test/guest-1/console.txt").read_text() == "text"


def test_a_folder_of_an_earlier_run_stays(tmp_path: Path) -> None:
    folders = [Artefacts(lambda: tmp_path, "test").folder.name for _ in range(3)]
    assert folders == ["test", "test-2", "test-3"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    artefacts = Artefacts(lambda: tmp_path / "file", "test")
    wanted = "the folder .*file for the files of tests cannot be used: .*; give a different one"
    with pytest.raises(pykvm.UsageError, match=wanted):
        artefacts.write("console.txt", "text")


def test_a_trace_in_memory_becomes_a_file_that_pykvm_trace_reads() -> None:
    trace = TraceLog()
    assert trace_text(trace, []) == ""
    trace.record("virtio_blk.reset", 5, "virtio0", -1, {})
    trace.record("virtio_blk.stop", 9, "virtio0", 0, {})
    text = trace_text(trace, [])
    reader = Reader(io.BytesIO(text.encode()))
    events = [(event.name, event.ns, event.disk, event.queue) for event in reader]
    assert events == [
        ("trace.begin", 5, "", -1),
        ("virtio_blk.reset", 5, "virtio0", -1),
        ("virtio_blk.stop", 9, "virtio0", 0),
        ("trace.end", 9, "", -1),
    ]
    assert reader.complete
