"""Building the bare guest, and its cache."""

import shutil
from pathlib import Path

import pytest

from pykvm.bare import build, build_bare_guest
from pykvm.errors import UsageError
from pykvm.memory import Ram
from pykvm.x86.loader import load_kernel

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_compiler
def test_the_bare_guest_is_built_once(cache: Path):
    built = build_bare_guest()
    stamp = built.stat().st_mtime_ns
    assert built.is_relative_to(cache)
    assert build_bare_guest() == built
    assert built.stat().st_mtime_ns == stamp
    # Nothing half-built is left behind.
    assert [entry.name for entry in (cache / "bare").iterdir()] == [built.parent.name]


@needs_compiler
def test_changed_sources_are_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = build_bare_guest()
    copy = tmp_path / "sources"
    shutil.copytree(build.SOURCES, copy)
    main = copy / "main.c"
    main.write_text(main.read_text().replace("hello from CPL3", "changed"))
    monkeypatch.setattr(build, "SOURCES", copy)
    second = build_bare_guest()
    assert first.parent != second.parent
    assert b"changed" in second.read_bytes()


@needs_compiler
def test_a_broken_source_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / "sources"
    shutil.copytree(build.SOURCES, copy)
    (copy / "main.c").write_text("nonsense\n")
    monkeypatch.setattr(build, "SOURCES", copy)
    with pytest.raises(UsageError, match="does not build"):
        build_bare_guest()
    assert not list((tmp_path / "cache" / "bare").iterdir())


def test_without_sources_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "SOURCES", tmp_path / "none")
    with pytest.raises(UsageError, match="checkout"):
        build_bare_guest()


@needs_compiler
def test_the_loader_accepts_the_bare_guest_as_pvh(tmp_path: Path):
    guest = build_bare_guest(tmp_path / "copy" / "bare.elf")
    ram = Ram.flat(16 << 20)
    loaded = load_kernel(
        ram, guest, initrd=b"not a cpio archive", command_line=lambda kind: "hello", cpus=1
    )
    assert loaded.kind == "pvh"
