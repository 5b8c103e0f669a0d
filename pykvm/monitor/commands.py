"""What each command does to a machine."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from pykvm.machine import Machine, RunState
from pykvm.monitor import shapes
from pykvm.monitor.protocol import COMMAND_NOT_FOUND, NEGOTIATE, Command, QmpError

SLOW: Final = frozenset({"stop", "cont"})
"""Commands that wait for vCPUs or disks."""


def execute(machine: Machine, command: Command) -> Any:
    """Carry out ``command``; what it returns. QmpError says why it cannot be."""
    call = _COMMANDS.get(command.name)
    if call is None:
        raise QmpError(f"there is no command '{command.name}'", COMMAND_NOT_FOUND)
    if command.arguments:
        raise QmpError(f"'{command.name}' has no argument '{next(iter(command.arguments))}'")
    return call(machine)


def _stop(machine: Machine) -> Any:
    _check_running(machine)
    try:
        machine.pause()
    except TimeoutError as error:
        raise QmpError(str(error)) from None
    return {}


def _cont(machine: Machine) -> Any:
    _check_running(machine)
    machine.resume()
    return {}


def _check_running(machine: Machine) -> None:
    status = machine.status
    if status is RunState.PRELAUNCH:
        raise QmpError("the guest has not been started yet")
    if status.over:
        raise QmpError("the run is over")


def _quit(machine: Machine) -> Any:
    machine.finish(shapes.QUIT)
    return {}


def _query_commands(machine: Machine) -> Any:
    return [{"name": name} for name in sorted({*_COMMANDS, NEGOTIATE})]


_COMMANDS: Final = MappingProxyType[str, Callable[[Machine], Any]](
    {
        "cont": _cont,
        "query-block": lambda machine: [shapes.block_info(disk) for disk in machine.disks],
        "query-blockstats": lambda machine: [shapes.block_stats(disk) for disk in machine.disks],
        "query-commands": _query_commands,
        "query-name": lambda machine: {},
        "query-status": lambda machine: shapes.status(machine.status),
        "query-version": lambda machine: shapes.version(),
        "quit": _quit,
        "stop": _stop,
    }
)
