"""``pykvm cache``: what templates there are, and how they go."""

import json
import os
import time
from pathlib import Path

import pytest

from pykvm.cli.main import main
from pykvm.machine.config import MachineConfig
from pykvm.templates import about, upkeep
from pykvm.templates.store import Store

KEY, OTHER = "a" * 32, "b" * 32
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two templates and a guest that did not boot."""
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path))
    monkeypatch.delenv("PYKVM_TEMPLATE_LIMIT", raising=False)
    made = Store(str(tmp_path / "templates"), 512 * MIB)
    for key, config in {
        KEY: MachineConfig(guest="guest", memory="80M", append="a\x1bb"),
        OTHER: MachineConfig(guest="./mine", kernel=os.fsdecode(b"/k\xff"), cpus=2),
    }.items():
        os.makedirs(made.path(key))
        Path(made.path(key), "ram").write_bytes(os.urandom(MIB))
        about.write(made.path(key), config)
    os.utime(made.path(OTHER), (0, time.time() - 7300))
    made.failed("c" * 32, "it panicked")
    (tmp_path / "host-traits").touch()
    return made


def test_the_list_says_whose_they_are(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    first, second, third, last = capfd.readouterr().out.splitlines()
    assert first.endswith("guest -m 80M --append 'a\\x1bb'")
    assert second.endswith("used    2 h ago  ./mine --kernel /k\\xff --cpus 2")
    assert third == "none yet: it panicked"
    assert last.startswith("2 templates, 2.0 MiB of at most 512.0 MiB in ")
    assert last.endswith(store.folder)


def test_the_list_as_json(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["folder"], found["limit"]) == (store.folder, 512 * MIB)
    assert found["failed"] == [{"reason": "it panicked"}]
    assert {one["key"]: one["about"]["guest"] for one in found["templates"]} == {
        KEY: "guest",
        OTHER: "./mine",
    }
    assert found["bytes"] == sum(one["bytes"] for one in found["templates"]) >= 2 * MIB


def test_clear_removes_templates_only(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    other = Path(store.folder, "mine")
    other.mkdir()
    assert main(["cache", "clear"]) == 0
    assert capfd.readouterr().out == f"removed 2 templates, 2.0 MiB, from {store.folder}\n"
    assert os.listdir(store.folder) == ["mine"]
    assert Path(store.folder).parent.joinpath("host-traits").exists()
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["removed"] == []


@pytest.mark.parametrize("action", ["list", "clear"])
def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], action: str
) -> None:
    (tmp_path / "templates").touch()
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path))
    assert main(["cache", action]) == 2
    text = f"the templates in {tmp_path}/templates cannot be read: not a directory; set PYKVM_CACHE"
    assert text in capfd.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_templates_that_stay_are_a_failure(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    monkeypatch.setattr(upkeep, "remove", lambda store, key: False)
    assert main(["cache", "clear", *options]) == 2
    assert "2 of the templates cannot be removed" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text", [b"", b"[" * 100_000, b"[]", b'{"guest": [1], "memory": "x", "cpus": {}}', b"\xff"]
)
def test_a_description_may_hold_anything(
    store: Store, capfd: pytest.CaptureFixture[str], text: bytes
) -> None:
    Path(store.path(KEY), about.ABOUT).write_bytes(text)
    assert main(["cache", "list"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 4


def test_an_empty_cache_and_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path / "none"))
    for action in ("list", "clear"):
        assert main(["cache", action]) == 0
        assert "0 templates" in capfd.readouterr().out
    assert not (tmp_path / "none").exists()
    for name in ("PYKVM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    assert main(["cache", "list"]) == 2
    assert "this user has no home, so no cache; set PYKVM_CACHE" in capfd.readouterr().err
    assert main(["cache", "lost"]) == 2
