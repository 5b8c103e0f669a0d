"""The edit of busybox that lets a shell wait for its line."""

from pathlib import Path

import pytest
from recipe import shell_edits


def write_source(folder: Path, text: str) -> Path:
    file = folder / "shell/ash.c"
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_the_edit_is_made_where_it_belongs(tmp_path: Path):
    places = "".join(edit.old for edit in shell_edits.EDITS)
    text = write_source(tmp_path, f"before\n{places}after\n")
    shell_edits.apply(tmp_path)
    assert text.read_text() == "before\n" + "".join(e.new for e in shell_edits.EDITS) + "after\n"


def test_a_source_that_has_changed_is_refused(tmp_path: Path):
    write_source(tmp_path, "another shell")
    with pytest.raises(ValueError, match="0 times, not once"):
        shell_edits.apply(tmp_path)
