"""The commands of the monitor, carried out on a machine."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pykvm.devices.virtio_blk import RateLimits
from pykvm.devices.virtio_blk.rates import RATES
from pykvm.errors import UsageError
from pykvm.machine import Machine, RunState
from pykvm.machine.disks import Disk
from pykvm.monitor import qapi
from pykvm.monitor.jobs import Jobs
from pykvm.monitor.protocol import COMMAND_NOT_FOUND, NEGOTIATE, Command, Json, QmpError

SLOW: Final = frozenset({"stop", "cont", "block_resize"})
"""The commands that wait for vCPUs, disks or files."""


class Target(NamedTuple):
    """The machine that commands act on, and its jobs."""

    machine: Machine
    jobs: Jobs


class _Entry(NamedTuple):
    """A command: its function, and the types of its required and optional arguments, by name."""

    call: Callable[[Target, Json], Any]
    required: Mapping[str, type] = MappingProxyType({})
    optional: Mapping[str, type] = MappingProxyType({})


def execute(target: Target, command: Command) -> Any:
    """Carry out ``command``, and return its result. QmpError tells why it failed."""
    entry = _COMMANDS.get(command.name)
    if entry is None:
        raise QmpError(f"there is no command '{command.name}'", COMMAND_NOT_FOUND)
    _check_arguments(command, entry)
    try:
        return entry.call(target, command.arguments)
    except UsageError as error:
        raise QmpError(str(error)) from None


def _check_arguments(command: Command, entry: _Entry) -> None:
    for name, value in command.arguments.items():
        wanted = entry.required.get(name) or entry.optional.get(name)
        if wanted is None:
            raise QmpError(f"'{command.name}' has no argument '{name}'")
        if type(value) is not wanted:
            kind = "a whole number" if wanted is int else "a string"
            raise QmpError(f"the argument '{name}' of '{command.name}' must be {kind}")
    for name in entry.required:
        if name not in command.arguments:
            raise QmpError(f"'{command.name}' needs the argument '{name}'")


def _stop(target: Target, arguments: Json) -> Any:
    _check_running(target.machine)
    try:
        target.machine.pause()
    except TimeoutError as error:
        raise QmpError(str(error)) from None
    return {}


def _cont(target: Target, arguments: Json) -> Any:
    _check_running(target.machine)
    target.machine.resume()
    return {}


def _check_running(machine: Machine) -> None:
    status = machine.status
    if status is RunState.PRELAUNCH:
        raise QmpError("the guest has not been started yet")
    if status.over:
        raise QmpError("the run is over")


def _quit(target: Target, arguments: Json) -> Any:
    target.machine.finish(qapi.QUIT)
    return {}


def _query_commands(target: Target, arguments: Json) -> Any:
    return [{"name": name} for name in sorted({*_COMMANDS, NEGOTIATE})]


def _disk(machine: Machine, arguments: Json) -> Disk:
    """The disk that ``arguments`` name, by one of QEMU's keys."""
    given = [arguments[key] for key in _DISK if key in arguments]
    if len(given) != 1:
        raise QmpError("one of 'device', 'id' and 'node-name' must name the disk")
    for disk in machine.disks:
        if disk.name == given[0]:
            return disk
    raise QmpError(f"there is no disk '{given[0]}'")


def _block_resize(target: Target, arguments: Json) -> Any:
    _disk(target.machine, arguments).resize(arguments["size"])
    return {}


def _block_set_io_throttle(target: Target, arguments: Json) -> Any:
    rates = {name: value for name, value in arguments.items() if name in RATES}
    _disk(target.machine, arguments).limits = RateLimits(**rates)
    return {}


def _snapshot_save(target: Target, arguments: Json) -> Any:
    _check_running(target.machine)
    target.jobs.save(arguments["job-id"], arguments["tag"])
    return {}


def _snapshot_load(target: Target, arguments: Json) -> Any:
    _check_running(target.machine)
    target.jobs.load(arguments["job-id"], arguments["tag"])
    return {}


def _job_dismiss(target: Target, arguments: Json) -> Any:
    target.jobs.dismiss(arguments["id"])
    return {}


_DISK: Final = MappingProxyType({"device": str, "id": str, "node-name": str})
_COMMANDS: Final = MappingProxyType(
    {
        "block_resize": _Entry(_block_resize, {"size": int}, _DISK),
        "block_set_io_throttle": _Entry(
            _block_set_io_throttle, optional={**_DISK, **dict.fromkeys(RATES, int)}
        ),
        "cont": _Entry(_cont),
        "job-dismiss": _Entry(_job_dismiss, {"id": str}),
        "query-block": _Entry(lambda target, _: [*map(qapi.block_info, target.machine.disks)]),
        "query-blockstats": _Entry(
            lambda target, _: [*map(qapi.block_stats, target.machine.disks)]
        ),
        "query-commands": _Entry(_query_commands),
        "query-jobs": _Entry(lambda target, _: target.jobs.query()),
        "query-name": _Entry(lambda target, _: {}),
        "query-status": _Entry(lambda target, _: qapi.status(target.machine.status)),
        "query-version": _Entry(lambda target, _: qapi.version()),
        "quit": _Entry(_quit),
        "snapshot-load": _Entry(_snapshot_load, {"job-id": str, "tag": str}),
        "snapshot-save": _Entry(_snapshot_save, {"job-id": str, "tag": str}),
        "stop": _Entry(_stop),
    }
)
