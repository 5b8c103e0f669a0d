"""The guest that a test asks for: keywords of ``pykvm.boot``, and a few of the plugin."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pykvm.devices.virtio_blk.open import DiskConfig
from pykvm.errors import UsageError
from pykvm.forms import refused, size
from pykvm.guest.boot import boot
from pykvm.guest.guest import Guest
from pykvm.lean.records import record, replace
from pykvm.machine.config import disk_config
from pykvm.pytest_plugin.kernel_reports import KINDS
from pykvm.suggest import did_you_mean

_NOT_FOR_TESTS = {"trace": "use --pykvm-trace"}
_OWN = ("disk", "prepare", "fail_on")
KEYWORDS = (
    *(name for name in inspect.signature(boot).parameters if name not in _NOT_FOR_TESTS),
    *_OWN,
)
"""The keywords of a spec."""
_MEMORY = 64 << 20
"""The memory of a guest that names none."""

Prepare = str | Callable[[Guest], object]


@record
class Spec:
    """The guest of a test."""

    options: Mapping[str, Any]
    """Keywords of ``pykvm.boot``."""
    prepare: Prepare | None
    """Prepares a guest that has booted: a command, or a function that takes the guest."""
    fail_on: frozenset[str]
    """The kinds of the kernel's reports that fail a test."""

    def same_guest(self, other: "Spec") -> bool:
        """Guests of both can begin from one snapshot."""
        return (self.options, self.prepare) == (other.options, other.prepare)

    @property
    def has_agent(self) -> bool:
        """The guest can run commands."""
        return self.options.get("kernel") is None or self.options.get("guest") is not None

    @property
    def memory(self) -> int:
        """The guest's bytes of memory, or about that."""
        return size("memory", self.options.get("memory", 0)) or _MEMORY


def merged(layers: Iterable[Mapping[str, Any]], fail_on: Iterable[str]) -> Spec:
    """The spec of all ``layers``, of which a later one wins. UsageError.

    ``fail_on`` is the default.
    """
    keywords: dict[str, Any] = {"fail_on": fail_on}
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise refused("pykvm_spec", layer, "return keywords of pykvm.boot as a dictionary")
        _check(layer)
        keywords |= layer
        if "disk" in layer:
            keywords["disks"] = [keywords.pop("disk")]
    prepare, kinds = keywords.pop("prepare", None), _kinds(keywords.pop("fail_on"))
    if prepare is not None and not isinstance(prepare, str) and not callable(prepare):
        raise refused("prepare", prepare, "give a command, or a function that takes the guest")
    if "disks" in keywords:
        keywords["disks"] = tuple(map(_forked, keywords["disks"]))
    if "warning" in kinds and (keywords.get("kernel") is None or keywords.get("guest")):
        # The console of the bundled guest shows errors only. The test's own level comes later.
        keywords["append"] = f"loglevel=5 {keywords.get('append', '')}".strip()
    return Spec(keywords, prepare, kinds)


def _check(layer: Mapping[str, Any]) -> None:
    for name in layer:
        if name in _NOT_FOR_TESTS:
            raise UsageError(f"a test's guest has no keyword '{name}'", _NOT_FOR_TESTS[name])
        if name not in KEYWORDS:
            known = f"use {', '.join(KEYWORDS)}"
            raise UsageError(
                f"a test's guest has no keyword '{name}'", did_you_mean(str(name), KEYWORDS, known)
            )
    if "disk" in layer and "disks" in layer:
        raise UsageError("disk and disks exclude each other", "give all disks in disks=[…]")


def _kinds(names: object) -> frozenset[str]:
    words = names.split() if isinstance(names, str) else names
    if not isinstance(words, list | tuple | set | frozenset):
        raise refused("fail_on", names, f"give kinds of reports: {', '.join(KINDS)}")
    for name in words:
        if name not in KINDS:
            known = f"use {', '.join(KINDS)}"
            raise UsageError(
                f"fail_on: the kernel has no kind of report called '{name}'",
                did_you_mean(str(name), KINDS, known),
            )
    return frozenset(words)


def _forked(disk: "DiskConfig | Path | str") -> DiskConfig:
    """``disk`` as a disk whose writes leave its image as it is, so that it can go back."""
    config = disk_config("disks", disk)
    apart = config.blank or config.readonly or config.snapshot
    return config if apart else replace(config, snapshot=True)
