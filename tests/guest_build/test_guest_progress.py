"""The progress of a long build, and parallel builds."""

import re
import sys
import threading
from pathlib import Path

import pytest
from patience import patience
from recipe import progress
from recipe.problem import BuildError
from recipe.progress import run, step, together


def test_a_long_step_tells_how_many_files_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.01)
    log = tmp_path / "log"
    log.write_text("earlier\n  CC      not/ours.o\n")
    seen = ""
    with step("Compiling", log=log, files=60):
        with log.open("a") as file:
            file.write("  AR      x.a\n" + "  CC      a.o\n" * 40)
        while not re.search(r"Compiling: 40 of about 60 files, about \d+:\d\d left\n", seen):
            seen += capfd.readouterr().err
    assert re.search(r"Compiling: done in \d+\.\d s\n", capfd.readouterr().err)
    assert "41 of" not in seen


def test_tasks_run_in_parallel():
    both = threading.Barrier(2, timeout=patience())
    together(both.wait, both.wait)


def test_a_failure_ends_the_other_commands(tmp_path: Path):
    log, begun = tmp_path / "log", tmp_path / "begun"
    after = []

    def long() -> None:
        try:
            run(["sh", "-c", f"touch {begun}; exec sleep 1000"], log)
        finally:
            with pytest.raises(BuildError):
                run(["true"], log)
            after.append(1)

    def failing() -> None:
        wait = f"import os, time\nwhile not os.path.exists({str(begun)!r}): time.sleep(0.01)"
        run([sys.executable, "-c", wait], log)
        raise BuildError("on purpose")

    with pytest.raises(BuildError, match="on purpose"):
        together(long, failing)
    assert after == [1]
    run(["true"], log)
