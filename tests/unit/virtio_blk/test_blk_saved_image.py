"""What a snapshot knows of a disk's image: identity, size, the guest's view, layers, faults."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from blk_device import IN, SIZE, disk_file
from blk_operations import over
from effort import examples
from hypothesis import HealthCheck, given, settings
from patience import ends, goes_on, in_thread
from saved_states import damages

from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.devices.virtio_blk.layers.frozen import Layers
from pykvm.devices.virtio_blk.open import DiskConfig, OpenDisk, open_disk
from pykvm.devices.virtio_blk.rates import RateLimits
from pykvm.devices.virtio_blk.saved import (
    check_can_go_back,
    config_of,
    config_text,
    freeze,
    load_disk,
    save_disk,
)
from pykvm.errors import UsageError
from pykvm.lean.records import replace
from pykvm.snapshot.fields import Fields, Saved, SnapshotError

Opener = Callable[..., OpenDisk]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return disk_file(tmp_path)


@pytest.fixture
def opened(path: Path) -> Iterator[Opener]:
    """Opens disks on ``path``, or blank ones, and closes them at the end."""
    with ExitStack() as stack:

        def make(**options: Any) -> OpenDisk:
            if "blank" not in options:
                options = {"path": path, "locking": "off", **options}
            return stack.enter_context(open_disk(DiskConfig(**options)))

        yield make


def load(disk: OpenDisk, fields: Fields, layers: Layers | None = None) -> None:
    load_disk(disk, Saved("disk", fields), layers)


def test_a_disk_whose_image_is_as_it_was_goes_on(opened: Opener, path: Path) -> None:
    fields = save_disk(opened())
    load(opened(), fields)
    load(opened(snapshot=True), fields)


def test_a_write_right_after_the_snapshot_is_noticed(opened: Opener, path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"0")
        file.flush()
        fields = save_disk(opened())
        file.write(b"1")
    with pytest.raises(SnapshotError, match=f"{path} has changed since the snapshot"):
        load(opened(), fields)


@pytest.mark.parametrize("options", [{"readonly": True}, {"snapshot": True}, {}])
def test_an_image_that_changed_is_refused(
    opened: Opener, path: Path, options: dict[str, Any]
) -> None:
    disk = opened(**options)
    fields, layers = save_disk(disk), freeze(disk)
    os.utime(path, ns=(0, 1))
    with pytest.raises(SnapshotError, match="has changed since"):
        load(opened(**options), fields, layers)
    if layers:
        layers.close()


def test_a_copy_of_the_image_is_not_the_image(opened: Opener, path: Path) -> None:
    fields = save_disk(opened())
    content = path.read_bytes()
    path.rename(path.with_name("old"))
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="is not the one that was saved"):
        load(opened(), fields)


def test_a_blank_disk_is_not_an_image(opened: Opener) -> None:
    fields = save_disk(opened())
    with pytest.raises(SnapshotError, match="is not the one that was saved"):
        load(opened(blank=SIZE), fields)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"packed": True}, "(features)"),
        ({"serial": "x"}, "(serial)"),
        ({"queue_size": 64}, "(queue size, config)"),
        ({"num_queues": 2}, "(features, queues, config)"),
        ({"readonly": True}, "(features, config)"),
        ({"physical_block_size": 4096}, "(config)"),
    ],
)
def test_a_disk_that_looks_different_to_its_guest_is_refused(
    opened: Opener, options: dict[str, Any], words: str
) -> None:
    fields = save_disk(opened())
    with pytest.raises(SnapshotError) as error:
        load(opened(**options), fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "options", [{"engine": "threads"}, {"merge": "off"}, {"werror": "stop"}, {"limits": None}]
)
def test_the_host_s_own_options_may_differ(opened: Opener, options: dict[str, Any]) -> None:
    load(opened(**options), save_disk(opened()))


@pytest.mark.parametrize("options", [{"blank": SIZE}, {"snapshot": True}])
def test_layers_are_given_back(opened: Opener, options: dict[str, Any]) -> None:
    disk = opened(**options)
    disk.image.resize(2 * SIZE)
    fields, layers = save_disk(disk), freeze(disk)
    assert layers
    other = opened(**options)
    load(other, fields, layers)
    assert other.image.size == 2 * SIZE
    with pytest.raises(SnapshotError, match="its layers are missing"):
        load(other, fields)
    other.image.resize(SIZE)
    load(other, fields, layers)
    assert other.image.size == 2 * SIZE
    layers.close()


def test_writes_of_an_overlay_do_not_go_to_an_image(opened: Opener) -> None:
    disk = opened(snapshot=True)
    fields, layers = save_disk(disk), freeze(disk)
    with pytest.raises(SnapshotError, match=r"snapshot=on"):
        load(opened(), fields, layers)
    assert layers
    layers.close()


def test_the_files_of_a_disk_are_not_replaced_while_its_owner_uses_them(opened: Opener) -> None:
    disk = opened(blank=SIZE)
    with disk.device.image_lock:
        frozen: list[Layers | None] = []
        freezing = in_thread(lambda: frozen.append(freeze(disk)))
        assert goes_on(freezing)
    assert ends(freezing)
    (layers,) = frozen
    assert layers
    layers.close()


def test_only_disks_that_keep_their_image_can_go_back(opened: Opener) -> None:
    for options in ({"readonly": True}, {"snapshot": True}, {"blank": SIZE}):
        check_can_go_back(opened(**options))
    with pytest.raises(UsageError, match="cannot go back"):
        check_can_go_back(opened())


def test_the_counts_and_the_chance_of_faults_go_on(opened: Opener) -> None:
    faults = [Fault(probability=0.5, errno="EIO"), Fault("read", nth=3, errno="EIO")]
    disk = opened(faults=FaultPlan(faults))
    plan = disk.config.faults
    assert plan
    strike(plan, 20)
    fields = save_disk(disk)
    expected = strike(plan, 50)
    other = FaultPlan(faults)
    load(opened(faults=other), fields)
    assert strike(other, 50) == expected
    assert [(rule.matches, rule.strikes) for rule in other.rules] == [
        (rule.matches, rule.strikes) for rule in plan.rules
    ]


def test_different_faults_begin_anew(opened: Opener) -> None:
    fields = save_disk(opened(faults=[Fault("read", nth=2, errno="EIO")]))
    plan = FaultPlan([Fault("read", nth=3, errno="EIO")])
    load(opened(faults=plan), fields)
    assert strike(plan, 3) == [False, False, True]


def test_a_copy_of_a_plan_counts_for_itself() -> None:
    plan = FaultPlan([Fault(probability=0.5, errno="EIO")])
    strike(plan, 5)
    copy = plan.copy()
    expected = strike(plan, 30)
    assert copy.rules[0].matches == 5
    assert strike(copy, 30) == expected


def strike(plan: FaultPlan, count: int) -> list[bool]:
    return [plan.effect(over(IN, 0, 512)) is not None for _ in range(count)]


@settings(
    max_examples=examples(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage=damages())
def test_a_damaged_part_is_refused_or_accepted(
    opened: Opener, damage: Callable[[Fields], Fields]
) -> None:
    with (
        open_disk(DiskConfig(blank=SIZE, faults=[Fault(probability=0.5, errno="EIO")])) as disk,
        open_disk(DiskConfig(blank=SIZE, faults=[Fault(probability=0.5, errno="EIO")])) as other,
    ):
        fields, layers = save_disk(disk), freeze(disk)
        assert layers
        with closing(layers), suppress(SnapshotError):
            load(other, damage(fields), layers)
        assert other.config.faults
        strike(other.config.faults, 3)


@pytest.mark.parametrize(
    "config",
    [
        DiskConfig(blank="64M"),
        DiskConfig("a.img", snapshot=True, cache="none", lifetime=(1, 2, 3), seg_max=None),
        DiskConfig(b"\xff.img", readonly=True, limits=RateLimits(iops=5), cpu_affinity={0, 2}),
        DiskConfig("a.img", engine=SyncEngine, faults=[Fault(errno="EIO")], format="raw"),
    ],
    ids=["blank", "snapshot", "read-only", "own engine"],
)
def test_the_configuration_comes_back(config: DiskConfig) -> None:
    back = config_of(config_text(config))
    own = {"faults": None, "engine": back.engine if callable(config.engine) else config.engine}
    path = Path(config.path).absolute() if config.path else ""
    assert back == replace(config, path=path, **own)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"limits": {}, "x": 1}', '{"limits": {}}', "[" * 5000]
)
def test_a_configuration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SnapshotError, match="makes no sense"):
        config_of(text)
