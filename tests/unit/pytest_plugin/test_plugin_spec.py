"""The guest that a test asks for: its keywords, and their merging."""

import pytest

import pykvm
from pykvm.pytest_plugin.spec import KEYWORDS, merged


def spec(*layers: object, fail_on: tuple[str, ...] = ("panic",)):
    return merged(layers, fail_on)  # type: ignore[arg-type]


def test_a_later_layer_wins() -> None:
    made = spec({"memory": "64M", "cpus": 2}, {"memory": "128M"}, {})
    assert made.options == {"memory": "128M", "cpus": 2}
    assert made.memory == 128 << 20


def test_disk_is_short_for_disks() -> None:
    assert spec({"disk": "1M"}).options == {"disks": (pykvm.DiskConfig(blank=1 << 20),)}
    later = spec({"disks": ["1M", "2M"]}, {"disk": "3M"})
    assert [disk.blank >> 20 for disk in later.options["disks"]] == [3]
    later = spec({"disk": "3M"}, {"disks": ["1M", "2M"]})
    assert [disk.blank >> 20 for disk in later.options["disks"]] == [1, 2]


def test_writes_never_reach_an_image() -> None:
    own = pykvm.DiskConfig("b.img", readonly=True)
    (image, readonly) = spec({"disks": ["a.img", own]}).options["disks"]
    assert image == pykvm.DiskConfig("a.img", snapshot=True)
    assert readonly is own


def test_a_kernel_alone_has_no_agent() -> None:
    assert not spec({"kernel": "bzImage"}).has_agent
    assert spec({"kernel": "bzImage", "guest": "guest"}).has_agent
    assert spec({}).has_agent


def test_guests_with_equal_options_begin_from_one_snapshot() -> None:
    one = spec({"memory": "64M", "disk": "1M"}, fail_on=("bug",))
    assert one.same_guest(spec({"disks": ["1M"], "memory": "64M"}))
    assert not one.same_guest(spec({"memory": "64M", "disk": "1M", "prepare": "true"}))


def test_the_reports_that_fail_a_test() -> None:
    assert spec({}, fail_on=("panic", "bug")).fail_on == {"panic", "bug"}
    assert spec({"fail_on": "oops kasan"}).fail_on == {"oops", "kasan"}
    assert spec({"fail_on": ()}).fail_on == frozenset()


def test_warnings_that_fail_a_test_are_shown_on_the_console() -> None:
    assert spec({"fail_on": "warning", "append": "a"}).options["append"] == "loglevel=5 a"
    own = {"fail_on": "warning", "kernel": "bzImage"}
    assert spec(own | {"guest": "guest"}).options["append"] == "loglevel=5"
    assert "append" not in spec(own).options
    assert "append" not in spec({"fail_on": "panic"}).options


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"memroy": "1M"}, "a test's guest has no keyword 'memroy'; did you mean 'memory'?"),
        ({"trace": "t"}, "a test's guest has no keyword 'trace'; use --pykvm-trace"),
        ({"disk": "1M", "disks": []}, "disk and disks exclude each other; "),
        ({"fail_on": "pannic"}, "fail_on: the kernel has no kind of report called 'pannic'; did"),
        ({"fail_on": 1}, "fail_on cannot be 1; give kinds of reports: panic, "),
        ({"prepare": 1}, "prepare cannot be 1; give a command, or a function"),
        ({"memory": "much"}, "memory cannot be 'much'"),
        (3, "pykvm_spec cannot be 3; return keywords of pykvm.boot as a dictionary"),
    ],
)
def test_mistakes(layer: object, message: str) -> None:
    with pytest.raises(pykvm.UsageError) as caught:
        _ = spec(layer).memory
    assert str(caught.value).startswith(message)


def test_an_unknown_keyword_that_is_like_no_other() -> None:
    with pytest.raises(pykvm.UsageError) as caught:
        spec({"xyzzy": 1})
    assert str(caught.value).endswith(f"; use {', '.join(KEYWORDS)}")
