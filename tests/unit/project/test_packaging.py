"""``pykvm.devices`` is importable from a checkout, an editable install and a wheel alike."""

import json
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from checkout import ROOT

SHOW = "import pykvm.devices.virtio_blk as module; print(module.__file__)"


def import_from(cwd: Path, path: Path | None) -> Path:
    """Where a fresh interpreter in ``cwd`` finds the block device's package."""
    code = f"import sys; sys.path.insert(0, {str(path)!r}); {SHOW}" if path else SHOW
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_from_a_checkout():
    assert import_from(ROOT, None) == ROOT / "pykvm/devices/virtio_blk/__init__.py"
    assert (ROOT / "pykvm/devices").is_symlink()


def test_from_an_editable_install(tmp_path):
    url = metadata.distribution("pykvm").read_text("direct_url.json")
    origin = json.loads(url or "{}")
    if not origin.get("dir_info", {}).get("editable") or origin["url"] != ROOT.as_uri():
        pytest.skip("this checkout is not installed in editable mode; 'make test' does so")
    assert import_from(tmp_path, None) == ROOT / "pykvm/devices/virtio_blk/__init__.py"


COMPILES = pytest.mark.timeout(900)
"""Where nothing is compiled yet, the first test with a wheel does it all."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout's files, without the bundled guest.

    What the checkout has compiled is not compiled again.
    """
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("pykvm", "devices", "speed", "examples", "fuzz", "soak"):
        for file in (ROOT / folder).rglob("*.p[yx]*"):
            path = file.relative_to(ROOT)
            if path.suffix in (".py", ".pxd") and path.parts[1] not in ("bundles", "devices"):
                target = source / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    if (ROOT / "build/speed").exists():
        shutil.copytree(ROOT / "build/speed", source / "build/speed")
    (source / "pykvm/devices").symlink_to("../devices")
    (source / "pykvm/bundles/guest").mkdir(parents=True)
    (source / "pykvm/bundles/guest/bundle.json").write_text("{}")
    (source / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(source)], capture_output=True, check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
@COMPILES
def test_from_a_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    found = import_from(tmp_path, tmp_path / "site")
    assert found == tmp_path / "site/pykvm/devices/virtio_blk/__init__.py"


@pytest.mark.slow
@COMPILES
def test_a_wheel_carries_the_guest_and_the_licences(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "pykvm/bundles/guest/bundle.json" in names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pykvm"}


@pytest.mark.slow
@COMPILES
def test_a_wheel_has_the_hot_path_compiled(wheel):
    """Where there is a compiler; each module once, beside its source."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    compiled = [name for name in names if name.endswith(".so")]
    assert ("linux" in wheel.name) == bool(compiled)
    assert len(set(compiled)) == len(compiled)
    assert all(f"{name.split('.')[0]}.py" in names for name in compiled)
