"""Configurations accept natural values, and name the mistake in any other value."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import CacheMode, DiskOptions, EngineKind, RateLimits, SyncEngine
from pykvm.devices.virtio_blk import open as blk_open
from pykvm.devices.virtio_blk import options as blk_options
from pykvm.devices.virtio_blk.layers.faults import Effect, Fault, FaultPlan
from pykvm.devices.virtio_blk.modes import DiscardMode, ErrorPolicy, MergePolicy
from pykvm.errors import UsageError
from pykvm.forms import value_text
from pykvm.lean.records import replace
from pykvm.machine import ConsoleMode, DiskConfig, MachineConfig
from pykvm.machine import config as machine_config
from pykvm.trace import TraceFormat, TraceOptions

MIB = 1 << 20
RECORDS: dict[type, dict[str, Any]] = {
    MachineConfig: {},
    DiskConfig: {"path": "d.img"},
    DiskOptions: {},
    RateLimits: {},
    TraceOptions: {"path": "t"},
    Fault: {"errno": "EIO"},
    Effect: {},
}
"""The records that users make, with their required fields."""


def fields(kind: Any) -> tuple[str, ...]:
    return tuple(getattr(kind, "_record_fields", None) or kind.__dataclass_fields__)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, -(2**64), 10**5000]),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.sampled_from(["on", "off", "none", "64M", "1G", "7", "shell", "EIO", "sync", "a\0b", "0-7"]),
    st.binary(max_size=4),
    st.lists(st.one_of(st.integers(-1, 9), st.text(max_size=3), st.none()), max_size=4),
    st.sampled_from([10**5000]).map(lambda number: [number, number]),
    st.tuples(st.integers(), st.integers()),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from(
        [
            *(CacheMode.NONE, MergePolicy.OFF, ErrorPolicy.STOP, ConsoleMode.PIPE),
            *(TraceFormat.CHROME, EngineKind.SYNC, DiscardMode.OFF),
            *(object(), object, len, {1, 2}, range(3), iter([1]), Path("x"), DiskConfig("y")),
            *(RateLimits(), RateLimits(bps=1), FaultPlan(), Fault(errno=5), [Fault(errno=5)]),
            *(["a", "b"], [Path("a"), DiskConfig("b")], [None], bytearray(b"x"), NotImplemented),
        ]
    ),
)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in RECORDS for name in fields(kind)]
)
def test_any_value_is_accepted_or_a_usage_error(kind: type, name: str) -> None:
    @settings(max_examples=examples(50))
    @given(ANYTHING)
    def check(value: object) -> None:
        try:
            made = kind(**{**RECORDS[kind], name: value})
        except UsageError:
            return
        assert repr(made)
        assert kind(**{name: getattr(made, name) for name in fields(kind)}) == made

    check()


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        (MachineConfig, machine_config._FORMS),
        (DiskConfig, blk_options._FORMS | blk_open._FORMS),
        (DiskOptions, blk_options._FORMS),
    ],
)
def test_every_field_has_a_form(kind: type, forms: dict[str, Any]) -> None:
    assert set(forms) == set(fields(kind))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (lambda: DiskConfig("d", cache="none"), DiskConfig(Path("d"), cache=CacheMode.NONE)),
        (lambda: DiskConfig(b"d.img", readonly="on"), DiskConfig(Path("d.img"), readonly=True)),
        (lambda: DiskConfig("d", engine="sync"), DiskConfig(Path("d"), engine=EngineKind.SYNC)),
        (lambda: DiskConfig("d", cache=None, serial=None, limits=None), DiskConfig(Path("d"))),
        (lambda: DiskOptions(logical_block_size="4K"), DiskOptions(logical_block_size=4096)),
        (lambda: DiskOptions(werror="stop"), DiskOptions(werror=ErrorPolicy.STOP)),
        (lambda: DiskOptions(cpu_affinity=[0, 1]), DiskOptions(cpu_affinity=frozenset({0, 1}))),
        (lambda: DiskOptions(lifetime=[1, 2, 3]), DiskOptions(lifetime=(1, 2, 3))),
        (lambda: RateLimits(bps="10M", iops=None), RateLimits(bps=10 * MIB)),
        (lambda: TraceOptions("t", "chrome"), TraceOptions(Path("t"), TraceFormat.CHROME)),
        (lambda: MachineConfig(memory="128M"), MachineConfig(memory=128 * MIB)),
        (lambda: MachineConfig(memory=None, cpus=None, append=None), MachineConfig()),
        (lambda: MachineConfig(guest=PurePosixPath("g")), MachineConfig(guest="g")),
        (lambda: MachineConfig(console="pipe"), MachineConfig(console=ConsoleMode.PIPE)),
        (lambda: MachineConfig(console_size=[24, 80]), MachineConfig(console_size=(24, 80))),
        (lambda: MachineConfig(disks=["d"]), MachineConfig(disks=(DiskConfig(Path("d")),))),
        (lambda: MachineConfig(trace="t"), MachineConfig(trace=TraceOptions(Path("t")))),
    ],
)  # fmt: skip
def test_the_obvious_forms_are_accepted(written: Callable[[], object], meant: object) -> None:
    assert written() == meant


def test_none_stays_where_it_has_a_meaning() -> None:
    assert DiskOptions(seg_max=None).seg_max is None
    assert DiskConfig("d", faults=None, lifetime=None).faults is None


def test_an_engine_may_be_a_function_and_faults_a_list() -> None:
    assert DiskConfig("d", engine=SyncEngine).engine is SyncEngine
    (rule,) = DiskConfig("d", faults=[Fault(errno="EIO")]).faults.rules
    assert rule.fault == Fault(errno="EIO")


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        (lambda: DiskConfig("d", cache="nonne"), "cache cannot be 'nonne'", "none, directsync or"),
        (lambda: DiskConfig(None), "a disk needs an image", "give a path"),
        (lambda: DiskConfig("a\0b"), r"path cannot be 'a\x00b'", "NUL"),
        (lambda: DiskConfig("d", queue_size="8"), "queue_size cannot be '8'", "a whole number"),
        (lambda: DiskConfig("d", readonly=1), "readonly cannot be 1", "True or False"),
        (lambda: DiskOptions(cpu_affinity="0-3"), "cpu_affinity cannot be '0-3'", "{0, 2}"),
        (lambda: DiskOptions(lifetime=(1, 2)), "lifetime cannot be (1, 2)", "three numbers"),
        (lambda: DiskOptions(limits={"iops": 1}), "limits cannot be {'iops': 1}", "RateLimits("),
        (lambda: DiskOptions(serial=7), "serial cannot be 7", "a string"),
        (lambda: MachineConfig(memory="128"), "memory cannot be '128'", "such as '64M'"),
        (lambda: MachineConfig(memory=1e8), "memory cannot be 100000000.0", "number of bytes"),
        (lambda: MachineConfig(disks="d.img"), "disks cannot be 'd.img'", "a list of paths"),
        (lambda: MachineConfig(disks=[7]), "path cannot be 7", "give a path"),
        (lambda: MachineConfig(console="x"), "console cannot be 'x'", "shell, pipe or none"),
        (lambda: MachineConfig(kernel=3), "kernel cannot be 3", "give a path"),
        (lambda: Fault(errno="EIO", call=5), "call cannot be 5", "a function"),
        (lambda: FaultPlan([5]), "a fault cannot be 5", "a Fault"),
        (lambda: FaultPlan(5), "faults cannot be 5", "a list"),
        (lambda: FaultPlan.load(5), "path cannot be 5", "a path"),
    ],
)  # fmt: skip
def test_the_error_for_a_wrong_value_names_the_field(
    written: Callable[[], object], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        written()
    assert caught.value.message == message
    assert hint in caught.value.hint


def test_a_changed_copy_is_checked_as_well() -> None:
    config = MachineConfig(memory="64M", disks=["d"])
    assert replace(config, memory="1G").memory == 1 << 30
    with pytest.raises(UsageError):
        replace(config, memory="much")


def test_a_long_value_is_shortened_in_messages() -> None:
    assert len(value_text("x" * 1000)) < 100
    assert value_text(10**5000) == "this int"
