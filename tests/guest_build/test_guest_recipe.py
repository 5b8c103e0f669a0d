"""The private apt configuration, the cache, and the command's errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe import apt, bundle, cache, requirements
from recipe.problem import BuildError
from recipe.progress import run

BUILD = Path(apt.__file__).parent.parent / "build.py"

DEB822 = """\
Types: deb
# a comment
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example
Suites: bookworm

Types: deb-src
URIs: http://source.example
Suites: bookworm
"""


def test_stanzas_gain_sources_and_keep_their_key():
    (stanza,) = apt.with_sources_deb822(DEB822)
    assert "Types: deb deb-src" in stanza
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in stanza
    assert "off.example" not in stanza


def test_one_line_entries_gain_sources():
    text = "# deb http://no.example x main\ndeb [signed-by=/k.gpg] http://a.example s main # why\n"
    assert apt.with_sources_one_line(text) == [
        "deb [signed-by=/k.gpg] http://a.example s main",
        "deb-src [signed-by=/k.gpg] http://a.example s main",
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("deb http://deb.debian.org/debian bookworm main", True),
        ("deb http://security.debian.org bookworm-security main", True),
        ("deb https://packages.example.com cloud-bookworm main", False),
        ("Types: deb\nSuites: bookworm bookworm-updates\n", True),
        ("Types: deb\nSuites: nodistro\n", False),
    ],
)
def test_entries_of_different_packages_are_told_apart(entry: str, expected: bool):
    assert apt.is_debian(entry, "bookworm") is expected


def test_machine_entries_come_from_both_kinds_of_file(tmp_path: Path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example bookworm main\n")
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "old.list.disabled").write_text("deb http://b.example x y\n")
    lines, stanzas = apt.machine_entries(tmp_path)
    assert len(lines) == 2
    assert len(stanzas) == 1


def test_a_download_is_checked_against_its_hash(tmp_path: Path):
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert apt.matches(file, f"SHA256:{digest}")
    assert not apt.matches(file, f"SHA256:{digest[::-1]}")
    assert not apt.matches(tmp_path / "none", f"SHA256:{digest}")


def test_a_part_is_built_once(tmp_path: Path):
    store = cache.Cache(tmp_path / "store")
    built = []

    def builder(output: Path) -> None:
        built.append(output)
        (output / "file").write_text("x")

    first = store.build("part", "k", builder)
    assert store.build("part", "k", builder) == first
    assert len(built) == 1
    assert (first / "file").read_text() == "x"


def test_a_failed_part_leaves_nothing(tmp_path: Path):
    store = cache.Cache(tmp_path)

    def builder(output: Path) -> None:
        (output / "half").write_text("x")
        raise BuildError("no")

    with pytest.raises(BuildError):
        store.build("part", "k", builder)
    assert list(tmp_path.iterdir()) == []


def test_keys_depend_on_each_input_and_on_its_limits():
    assert cache.key("ab", "c") != cache.key("a", "bc")
    assert cache.key(["a"], {"x": 1}) == cache.key(["a"], {"x": 1})


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYKVM_CACHE", "/some/where")
    assert cache.folder() == Path("/some/where/guest")
    monkeypatch.delenv("PYKVM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.folder() == Path("/xdg/pykvm/guest")


@pytest.mark.parametrize("home", ["", "here"])
def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, home: str):
    for name in ("PYKVM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", home or "~"))
    with pytest.raises(BuildError, match="PYKVM_CACHE"):
        cache.folder()


def test_an_empty_home_is_not_the_root_folder(monkeypatch: pytest.MonkeyPatch):
    for name in ("PYKVM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    with pytest.raises(BuildError, match="PYKVM_CACHE"):
        cache.folder()


def test_a_failing_command_shows_its_last_lines_and_its_log(tmp_path: Path):
    log = tmp_path / "log"
    with pytest.raises(BuildError) as caught:
        run(["sh", "-c", "echo something specific; exit 3"], log, hint="Do this.")
    text = str(caught.value)
    assert "status 3" in text
    assert "something specific" in text
    assert "Do this." in text
    assert str(log) in text


def test_missing_build_tools_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(requirements, "missing", lambda: ["bison", "flex"])
    with pytest.raises(BuildError, match=r"apt-get install .* bison flex"):
        requirements.ensure(False, tmp_path / "log")


def test_the_bundle_describes_its_flavours():
    contents = json.loads(bundle.description(["native"], "r", {"linux": "6.1"}))
    assert contents["format"] == 1
    assert list(contents["flavours"]) == ["native"]
    assert contents["flavours"]["native"]["kernel"] == "vmlinux-native"
    assert contents["memory_mib"] <= 64


def test_a_bundle_of_a_different_recipe_is_not_kept(tmp_path: Path):
    (tmp_path / "vmlinux-native").write_text("")
    (tmp_path / "bundle.json").write_bytes(bundle.description(["native"], "r", {}))
    assert bundle.read_flavours(tmp_path, "r") == ["native"]
    assert bundle.read_flavours(tmp_path, "another") == []
    (tmp_path / "bundle.json").write_text("[")
    assert bundle.read_flavours(tmp_path, "r") == []


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    return subprocess.run(
        [sys.executable, str(BUILD), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_dry_run_needs_no_network_and_changes_nothing(tmp_path: Path):
    output = tmp_path / "out"
    done = build(
        "--dry-run", "--flavour", "native", "--output", str(output), PYKVM_CACHE=str(tmp_path / "c")
    )
    assert done.returncode == 0
    assert str(output) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_reported_in_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = build("--flavour", "native", PYKVM_CACHE=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "PYKVM_CACHE" in done.stderr
    assert "Traceback" not in done.stderr
