"""The tools that ``--against`` names."""

from collections.abc import Sequence

from pykvm.bench.disk.tools.base import Tool
from pykvm.bench.disk.tools.fio import FioTool, fio_tools
from pykvm.bench.disk.tools.pykvm_tool import PykvmTool
from pykvm.bench.disk.tools.qemu import DIRECT_ONLY, QemuTool, qemu_tools
from pykvm.bench.disk.tools.qemu_cpu import DEFAULT_MACHINE, DEFAULT_MEMORY, MEMORIES
from pykvm.devices.virtio_blk import CacheMode
from pykvm.errors import UsageError
from pykvm.suggest import did_you_mean

NAMES = ("qemu", "fio", "pykvm")


def tools_of_modes(
    texts: Sequence[str], caches: Sequence[CacheMode]
) -> dict[CacheMode, list[Tool]]:
    """The tools of all ``texts`` for each cache mode, by :func:`tools_against`.

    UsageError, also if one of ``texts`` has no configuration in any of ``caches``.
    """
    found: dict[CacheMode, list[Tool]] = {cache: [] for cache in caches}
    for text in texts:
        tools = {cache: tools_against(text, cache) for cache in caches}
        if not any(tools.values()):
            raise UsageError(
                f"--against {text} works only with O_DIRECT", "add --cache none or directsync"
            )
        for cache, some in tools.items():
            found[cache] += some
            names = [f"{tool.name} {tool.label}".strip() for tool in found[cache]]
            twice = next((name for name in names if names.count(name) > 1), "")
            if twice:
                raise UsageError(f"--against asks for '{twice}' twice", "ask for it once")
    return found


def tools_against(text: str, cache: CacheMode) -> list[Tool]:
    """The configurations of the tool in ``NAME[,KEY=VALUE…]`` that suit ``cache``, perhaps none;
    UsageError.

    ``qemu`` takes ``machine=``, ``memory=``, ``aio=`` and ``poll-max-ns=``. ``fio`` takes
    ``ioengine=``. ``pykvm`` takes the keys of ``--disk``, which compares two sets of options.
    """
    name, _, rest = text.partition(",")
    if name == "pykvm":
        return [PykvmTool(rest)]
    options = _options(name, rest)
    if name == "qemu":
        machine = options.pop("machine", DEFAULT_MACHINE)
        memory = options.pop("memory", DEFAULT_MEMORY)
        if memory not in MEMORIES:
            raise UsageError(f"memory cannot be '{memory}'", f"use {' or '.join(MEMORIES)}")
        aio, poll = options.pop("aio", ""), options.pop("poll-max-ns", "")
        _refuse(name, options, "machine=, memory=, aio= and poll-max-ns=")
        if not aio and not poll:
            return [*qemu_tools(cache, machine, memory)]
        if aio == DIRECT_ONLY and not cache.direct:
            return []
        return [QemuTool(aio or "threads", _number(poll) if poll else None, machine, memory)]
    if name == "fio":
        engine = options.pop("ioengine", "")
        _refuse(name, options, "ioengine=")
        return [FioTool(engine)] if engine else [*fio_tools(cache)]
    hint = did_you_mean(name, NAMES, f"use {', '.join(NAMES)}")
    raise UsageError(f"--against does not know '{name}'", hint)


def _options(name: str, text: str) -> dict[str, str]:
    options = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UsageError(f"--against {name} cannot read '{part}'", "write KEY=VALUE")
        options[key] = value
    return options


def _refuse(name: str, options: dict[str, str], known: str) -> None:
    if options:
        raise UsageError(f"--against {name} has no option '{next(iter(options))}'", f"use {known}")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise UsageError(f"'{text}' is not a number of nanoseconds", "write it like 1000000")
    return int(text)
