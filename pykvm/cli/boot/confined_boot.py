"""Boots a guest for its template or snapshot in a confined process of its own.

The process that runs the guest later cannot do it: once confined, it could not build a second
machine. So a child boots the guest. Before its first instruction the child confines itself, to
the folder of the unfinished snapshot. It tells how that went through a pipe.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pykvm.cli.boot.saving import prepare
from pykvm.cli.process import signals_go_to
from pykvm.errors import HostError, PykvmError, UsageError
from pykvm.host.libc import prctl
from pykvm.machine.command import BootFailed, save_booted
from pykvm.machine.config import MachineConfig
from pykvm.machine.machine import Machine
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.memory.changed import keep_pagemap
from pykvm.sandbox import confine
from pykvm.snapshot.fields import SnapshotError

_PR_SET_PDEATHSIG = 1
_KINDS = (SnapshotError, UsageError, HostError, PykvmError)
Watch = Callable[[Machine], object]


def confined_boot(insist: bool) -> Callable[..., None]:
    """As :func:`save_booted`, in a confined process. ``insist``: completely, or HostError."""

    def boot(config: MachineConfig, folder: str, timeout: float | None, watch: Watch) -> None:
        reader, writer = os.pipe()
        parent = os.getpid()
        child = os.fork()
        if not child:
            os.close(reader)
            _be_child(parent, writer, lambda: _save(config, folder, timeout, watch, insist))
        os.close(writer)
        # Not the signal's usual end: the child tells what it ended.
        with signals_go_to(lambda number: os.kill(child, number)), open(reader, "rb") as answer:
            data = answer.read()
        _, status = os.waitpid(child, 0)
        _judge(data, os.waitstatus_to_exitcode(status))

    return boot


def _save(
    config: MachineConfig, folder: str, timeout: float | None, watch: Watch, insist: bool
) -> None:
    def begin(machine: Machine) -> None:
        watch(machine)
        prepare(machine)
        keep_pagemap()
        confine(snapshots=Path(folder).parent, insist=insist)

    save_booted(config, folder, timeout, begin)


def _be_child(parent: int, writer: int, work: Callable[[], None]) -> NoReturn:
    """Do ``work`` and end this process, without anything that its parent has yet to do."""
    status = 1
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            answer = _answer(work)
            os.write(writer, json.dumps(answer).encode())
            status = 0
    finally:
        os._exit(status)


def _answer(work: Callable[[], None]) -> dict[str, Any]:
    try:
        work()
    except BootFailed as error:
        outcome = error.outcome
        return {
            "reason": error.reason,
            "outcome": [outcome.kind.name, outcome.status, outcome.reason],
        }
    except PykvmError as error:
        kind = next(number for number, kind in enumerate(_KINDS) if isinstance(error, kind))
        return {"kind": kind, "message": error.message, "hint": error.hint}
    except OSError as error:
        return {"errno": error.errno}
    except BaseException as error:
        return {"kind": len(_KINDS) - 1, "message": f"a bug: {error!r}", "hint": ""}
    return {}


def _judge(data: bytes, status: int) -> None:
    """Raise what the child's answer tells. The child is confined, but its guest may own it."""
    try:
        answer = json.loads(data)
        if answer == {}:
            return
        if "outcome" in answer:
            kind, code, reason = answer["outcome"]
            outcome = Outcome(OutcomeKind[kind], int(code) & 0xFF, str(reason))
            raise BootFailed(str(answer["reason"]), outcome)
        if "errno" in answer:
            number = int(answer["errno"])
            raise OSError(number, os.strerror(number))
        raise _KINDS[int(answer["kind"])](str(answer["message"]), str(answer["hint"]))
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        pass
    number = -status if status < 0 else status - 128
    if number > 0:
        outcome = Outcome.signalled(number)
        raise BootFailed(outcome.reason, outcome)
    raise PykvmError("the process that boots the guest has failed", "use --cold")
