"""Tests run in both forms of the hot path, but for those that the form cannot affect."""

from pathlib import Path

import forms
import pytest

TESTS = forms.TESTS


def test_every_compiled_module_is_known():
    names = {path.name for path in forms.compiled_modules()}
    assert {"split.py", "request.py", "planner.py", "io_uring.py", "word_watch.py"} <= names
    assert all(path.is_file() for path in forms.compiled_modules())


@pytest.mark.parametrize(
    "name",
    [
        "unit/virtio/test_ring_split.py",  # imports a compiled module
        "unit/virtio_blk/test_blk_hostile.py",  # by way of a helper of the tests
        "unit/virtio_blk/test_blk_pci.py",  # by way of other modules of pykvm
        "bare/test_bare_block.py",  # starts machines in this process
        "linux/test_linux_faults.py",  # starts pykvm as a program, with a disk
        "cli/test_cli_monitor.py",
    ],
)
def test_tests_of_compiled_modules_run_in_both_forms(name: str):
    assert forms.affected(TESTS / name)


@pytest.mark.parametrize(
    "name",
    ["kvm/test_kvm_exits.py", "guest_build/test_guest_kconfig.py", "unit/x86/test_x86_elf.py"],
)
def test_other_tests_run_once(name: str):
    assert not forms.affected(TESTS / name)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from pykvm.virtio import split", True),
        ("def test():\n    import pykvm.virtio.split", True),
        ("import pykvm.machine", True),
        ("from blk_bench import Bench", True),
        ("import pykvm.x86.elf, os", False),
        ("command = ['pykvm', 'boot', '--' + 'disk']", True),
        ("command = ['pykvm', 'boot', 'guest']", False),
    ],
)
def test_a_new_file(code: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "test_new.py"
    file.write_text(code)
    monkeypatch.setattr(forms, "TESTS", tmp_path)
    assert forms.affected(file) == expected
