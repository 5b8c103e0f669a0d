"""A template is made completely or not at all, whatever goes wrong, without a real guest."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pykvm.errors import UsageError
from pykvm.machine.command import BootFailed
from pykvm.machine.config import MachineConfig
from pykvm.machine.outcome import Outcome
from pykvm.snapshot.fields import SnapshotError
from pykvm.templates import build as building
from pykvm.templates import start, upkeep
from pykvm.templates.store import Store, TemplateError

KEY, OTHER = "a" * 32, "b" * 32
MIB = 1 << 20
CONFIG = MachineConfig(guest="guest", agent=True, console="none", disks=["/d.img"])


class Rig:
    """``boot`` stands for the boot; it gets the folder to make."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.boot: Callable[[Path], None] = self.saves
        self.configs: list[MachineConfig] = []
        self.said: list[str] = []
        self.key = KEY
        self.size = 4096

    def saves(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "ram").write_bytes(os.urandom(self.size))

    def save_booted(
        self, config: MachineConfig, folder: str, timeout: float, watch: Callable[[Any], object]
    ) -> None:
        self.configs.append(config)
        self.boot(Path(folder))

    def build(self, timeout: float | None = None) -> str:
        return building.build(
            self.store,
            CONFIG,
            KEY,
            timeout=timeout,
            progress=self.said.append,
            watch=lambda machine: None,
        )

    def left(self) -> list[str]:
        return sorted(os.listdir(self.store.folder))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(Store(str(tmp_path / "templates"), 512 * MIB))

    class FakeMachine:
        def __init__(self, config: MachineConfig) -> None:
            if not config.disks:
                pytest.fail("the caller's own configuration is tried")

        def close(self) -> None:
            pass

    monkeypatch.setattr(building, "Machine", FakeMachine)
    monkeypatch.setattr(building, "save_booted", made.save_booted)
    monkeypatch.setattr(building, "template_key", lambda config: made.key)
    return made


def test_a_template_is_made_without_disks(rig: Rig) -> None:
    found = rig.build()
    assert found == rig.store.path(KEY)
    assert sorted(os.listdir(found)) == ["about.json", "ram"]
    assert rig.left() == [KEY]
    assert [config.disks for config in rig.configs] == [()]
    assert rig.said == ["first start of this guest on this host: booting it once"]
    assert rig.build() == found
    assert len(rig.configs) == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (SnapshotError("no space left on device", "make room"), TemplateError),
        (OSError(28, "no space"), TemplateError),
        (UsageError("no guest"), UsageError),
        (BootFailed("by a signal", Outcome.signalled(2)), BootFailed),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_leaves_nothing(
    rig: Rig, error: BaseException, raised: type[BaseException]
) -> None:
    def fails(folder: Path) -> None:
        rig.saves(folder)
        raise error

    rig.boot = fails
    with pytest.raises(raised):
        rig.build()
    assert rig.left() == []
    rig.boot = rig.saves
    rig.build()
    assert rig.left() == [KEY]


@pytest.mark.parametrize("outcome", [Outcome.panic("oops"), Outcome.timeout(120), Outcome.reset()])
def test_a_guest_that_does_not_boot_is_remembered(rig: Rig, outcome: Outcome) -> None:
    def fails(folder: Path) -> None:
        raise BootFailed("oops", outcome)

    rig.boot = fails
    with pytest.raises(TemplateError, match="alone, without disks, the guest did not boot: oops"):
        rig.build()
    assert rig.left() == [f"{KEY}.failed"]
    assert rig.store.failure(KEY).endswith("did not boot: oops")


def test_a_caller_in_haste_says_nothing_about_the_guest(rig: Rig) -> None:
    def fails(folder: Path) -> None:
        raise BootFailed("oops", Outcome.timeout(2))

    rig.boot = fails
    with pytest.raises(TemplateError):
        rig.build(timeout=2)
    assert rig.left() == []


def test_files_that_change_during_the_boot_are_no_template(rig: Rig) -> None:
    def changes(folder: Path) -> None:
        rig.saves(folder)
        rig.key = OTHER

    rig.boot = changes
    with pytest.raises(TemplateError, match="files have changed while it booted"):
        rig.build()
    assert rig.left() == []


def test_a_template_above_the_limit_is_not_kept(rig: Rig) -> None:
    rig.store.limit = MIB
    rig.size = 2 * MIB
    with pytest.raises(TemplateError, match="it is larger than the limit, 1 MiB; raise"):
        rig.build()
    assert rig.left() == [f"{KEY}.failed"]
    assert rig.store.failure(KEY)
    rig.store.limit = 3 * MIB
    assert not rig.store.failure(KEY)


def test_a_new_template_makes_room_for_itself(rig: Rig) -> None:
    upkeep.prepare(rig.store, 0)
    old = Path(rig.store.path(OTHER))
    old.mkdir()
    (old / "ram").write_bytes(os.urandom(MIB))
    os.utime(old, (1000, 1000))
    rig.store.limit = MIB
    rig.build()
    assert rig.left() == [KEY]


def test_nobody_waits_for_ever_for_a_template_of_somebody_else(rig: Rig) -> None:
    upkeep.prepare(rig.store, 0)
    reason = r"a different pykvm has been making it for 0\.1 seconds"
    with (
        upkeep.held(rig.store, KEY, 0, lambda: None),
        pytest.raises(TemplateError, match=reason),
    ):
        rig.build(timeout=0.1)
    assert rig.said == ["waiting for a different pykvm, which boots this guest for the first time"]
    assert not rig.configs


@pytest.mark.parametrize(
    ("cause", "removed"), [(errno.EMFILE, False), (errno.EACCES, False), (errno.ENOENT, True)]
)
def test_a_template_is_removed_only_if_it_is_bad(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, cause: int, removed: bool
) -> None:
    folder = rig.build()

    def refuses(config: MachineConfig, *, timings: object, snapshot: str) -> None:
        try:
            raise OSError(cause, os.strerror(cause))
        except OSError:
            raise SnapshotError("it cannot be read") from None

    monkeypatch.setattr(start, "Machine", refuses)
    monkeypatch.setattr(start, "open_store", lambda: rig.store)
    with pytest.raises(TemplateError):
        start._from_template(CONFIG, lambda: folder, None)
    assert os.path.isdir(folder) is not removed


@pytest.mark.parametrize(
    "options", [{"guest": None, "kernel": "k"}, {"agent": False}, {"shared_memory": True}]
)
def test_some_machines_have_no_template(options: dict[str, Any]) -> None:
    config = MachineConfig(**({"guest": "guest", "agent": True} | options))
    assert not start.has_template(config)
    with pytest.raises(UsageError, match="this machine has no template"):
        start.template(config)
