"""The import contracts of pyproject.toml, and the documentation that shows them."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
LAYERS, ROOMS, PURE = CONTRACTS
LINTER = Path(sys.executable).with_name("lint-imports")
DEVICE = "pykvm.devices.virtio_blk"


def modules(folder: Path) -> Iterator[Path]:
    """The sources below ``folder``, which may be a link."""
    for path in folder.rglob("*.py"):
        if "bundles" not in path.parts:
            yield path


def imported(path: Path) -> set[str]:
    """The packages that the module at ``path`` imports, by the first word of their names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def says_pure(path: Path) -> bool:
    """Does the first paragraph of the docstring end with this word?"""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n\n")[0].endswith("Pure.")


def test_what_says_that_it_is_pure_is_pure() -> None:
    pure = [
        path for name in ("pykvm", "devices") for path in modules(ROOT / name) if says_pure(path)
    ]
    assert len(pure) > 20
    wrong = {path: imported(path) & set(PURE["forbidden_modules"]) for path in pure}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_architecture_shows_the_layers() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    (drawing,) = (block for block in text.split("```")[1::2] if "↓" in block)
    rows = [set(row.split("  the ", 1)[0].split()) for row in drawing.replace("↓", "").splitlines()]
    layers = [set(re.findall(r"\w+", layer)) for layer in LAYERS["layers"]]
    assert [row for row in rows if row] == [layer for layer in layers if layer != {"__main__"}]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and their contracts, in a folder of their own."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("bundles", "devices", "__pycache__", "*.so")
    shutil.copytree(ROOT / "pykvm", tmp_path / "pykvm", ignore=ignored)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "devices", tmp_path / "devices", ignore=ignored)
    (tmp_path / "pykvm/devices").symlink_to("../devices")
    return tmp_path


def complaint(folder: Path) -> str:
    """What the linter says about ``folder``; it has to say something."""
    if not LINTER.exists():
        pytest.skip("import-linter is not installed here")
    command = [LINTER, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return " ".join(done.stdout.split())  # it breaks long lines


@pytest.mark.parametrize(
    ("importer", "name"),
    [
        ("virtio.queue", "pykvm.kvm.vm"),
        ("pci.msix", "pykvm.pc.rtc"),
        ("devices.virtio_blk.image.lock", f"{DEVICE}.serving.io_thread"),
        ("devices.virtio_blk.core.merge", "threading"),
    ],
    ids=["upward", "on one line", "upward in the device", "in a pure room"],
)
def test_a_planted_import_is_found(copy: Path, importer: str, name: str) -> None:
    path = (copy / "pykvm").joinpath(*importer.split(".")).with_suffix(".py")
    path.write_text(f"{path.read_text()}import {name}\n")
    assert f"pykvm.{importer} -> {name} " in complaint(copy)


def test_a_module_of_the_device_has_to_have_a_room(copy: Path) -> None:
    (copy / "devices/virtio_blk/stray.py").touch()
    assert f"{DEVICE}.stray" in complaint(copy)
