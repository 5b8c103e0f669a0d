"""``make speed`` compiles what changed, and what reads the declarations that changed."""

import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
from checkout import ROOT

SPEED = ROOT / "speed"
BASE = '''
class Base:
    """Words."""

    number: int

    def twice(self) -> int:
        return 2 * self.number
'''
USER = """
from pykvm.base import Base

def four_times(base: Base) -> int:
    return 2 * base.twice()
"""
OTHER = """
def nothing() -> None:
    return None
"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, for three modules of its own and with a compiler that is quick."""
    monkeypatch.syspath_prepend(str(SPEED))
    spec = util.spec_from_file_location("speed_build", SPEED / "build.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pykvm").mkdir()
    for name, text in (("base", BASE), ("user", USER), ("other", OTHER)):
        (tmp_path / f"pykvm/{name}.py").write_text(text)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "HOT", ("pykvm.base", "pykvm.user", "pykvm.other"))

    def run(command: list[str], cwd: Path, **_: object) -> "object":
        (cwd / f"{command[-1].replace('.', '/')}.cpython-0.so").write_text("compiled")
        compiled.append(command[-1].removeprefix("pykvm."))
        return module.subprocess.CompletedProcess(command, 0)

    compiled: list[str] = []
    module.compiled = compiled
    monkeypatch.setattr(module.subprocess, "run", run)
    yield module
    sys.modules.pop("declarations", None)


def compiled_by(build: ModuleType) -> list[str]:
    build.compiled.clear()
    build.build()
    return sorted(build.compiled)


def change(root: Path, name: str, old: str, new: str) -> None:
    path = root / f"pykvm/{name}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_unchanged_modules_are_not_compiled_again(build: ModuleType, tmp_path: Path):
    assert compiled_by(build) == ["base", "other", "user"]
    assert compiled_by(build) == []
    (tmp_path / "pykvm/base.py").touch()
    assert compiled_by(build) == []
    change(tmp_path, "base", "2 * self", "self.number + self")
    assert compiled_by(build) == ["base"]


def test_changed_declarations_recompile_only_their_readers(build: ModuleType, tmp_path: Path):
    compiled_by(build)
    change(tmp_path, "base", "number: int", "number: int\n    more: int")
    assert compiled_by(build) == ["base", "user"]
    change(tmp_path, "user", "-> int", "-> object")
    assert compiled_by(build) == ["user"]


def test_missing_extension_modules_are_compiled(build: ModuleType, tmp_path: Path):
    compiled_by(build)
    (tmp_path / "build/speed/pykvm/other.cpython-0.so").unlink()
    assert compiled_by(build) == ["other"]
    build.clean()
    assert not list((tmp_path / "pykvm").glob("*.so"))
    assert compiled_by(build) == []
    assert len(list((tmp_path / "pykvm").glob("*.so"))) == 3


def test_a_failure_is_tried_again(build: ModuleType, monkeypatch: pytest.MonkeyPatch):
    quick = build.subprocess.run

    def fails(command: list[str], **given: object) -> object:
        if command[-1] == "pykvm.user":
            return build.subprocess.CompletedProcess(command, 1, "no such", " thing")
        return quick(command, **given)

    with monkeypatch.context() as patch:
        patch.setattr(build.subprocess, "run", fails)
        with pytest.raises(RuntimeError, match="no such thing"):
            build.build()
    assert "user" in compiled_by(build)
    assert compiled_by(build) == []


@pytest.mark.parametrize("compiled", [False, True])
def test_a_command_for_which_the_hot_path_is_interpreted(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
):
    """Afterwards it is as before, whatever the command did."""
    if compiled:
        build.build()
    extensions = len(build.compiled_files())
    compiler, seen = build.subprocess.run, []

    def run(command: list[str], **given: object) -> object:
        if command != ["fuzz", "--seconds", "1"]:
            return compiler(command, **given)
        seen.append(build.compiled_files())
        return build.subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(build.subprocess, "run", run)
    assert build.main(["--interpreted", "fuzz", "--seconds", "1"]) == 3
    assert seen == [[]]
    assert len(build.compiled_files()) == extensions == 3 * compiled


def test_if_compiled_does_nothing_in_the_interpreted_form(build: ModuleType):
    assert build.main(["--if-compiled"]) == 0
    assert build.compiled == []


def test_every_module_is_compiled_again_when_the_declarations_of_c_functions_change(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    declarations = tmp_path / "c_calls.pxd"
    declarations.write_text("# nothing")
    monkeypatch.setattr(build, "C_CALLS", declarations)
    assert compiled_by(build) == ["base", "other", "user"]
    declarations.write_text("# something")
    assert compiled_by(build) == ["base", "other", "user"]
    assert compiled_by(build) == []
