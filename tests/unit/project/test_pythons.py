"""Which Pythons ``make test-pythons`` takes."""

import sys
from pathlib import Path

import pytest
import pythons


def python(path: Path, version: str) -> Path:
    """A program that says that it is a Python of this version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def test_one_of_each_other_version_that_pykvm_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, pyenv = tmp_path / "bin", tmp_path / "pyenv"
    wanted = python(path / "python3.98", "3 98")
    python(path / "python3.7", "3 7")
    python(path / "python3.97-config", "3 97")
    python(path / "python3.96", "3 96; exit 1")
    mine = "{} {}".format(*sys.version_info)
    python(path / f"python3.{sys.version_info[1]}", mine)
    python(pyenv / "versions/3.98.1/bin/python3.98", "3 98")
    also = python(pyenv / "versions/3.99.0/bin/python3.99", "3 99")
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("PYENV_ROOT", str(pyenv))
    assert pythons.others(pythons.candidates()) == {(3, 98): wanted, (3, 99): also}


def test_no_other_python_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(pythons, "candidates", lambda: iter(()))
    assert pythons.main([]) == 0
    assert "no other Python" in capsys.readouterr().out
