"""The JSON of machines, disks and events, in the terms of QEMU's QAPI schema."""

import os
import re
from types import MappingProxyType
from typing import Any, Final

from pykvm import __version__
from pykvm.devices.virtio_blk import CacheMode, RateLimits
from pykvm.devices.virtio_blk.rates import PLAIN_RATES
from pykvm.machine.disks import Disk
from pykvm.machine.events import (
    BlockIoError,
    Event,
    GuestPanicked,
    Resume,
    Shutdown,
    Stop,
)
from pykvm.machine.outcome import Outcome, OutcomeKind
from pykvm.machine.run_state import RunState
from pykvm.monitor.jobs import JobStatusChange
from pykvm.monitor.protocol import Json
from pykvm.names import name_fields

QUIT: Final = Outcome.quit("ended by quit on the monitor")
_REASONS: Final = MappingProxyType(
    {
        OutcomeKind.POWER_OFF: "guest-shutdown",
        OutcomeKind.HALTED: "guest-shutdown",
        OutcomeKind.RESET: "guest-reset",
        OutcomeKind.TRIPLE_FAULT: "guest-reset",
        OutcomeKind.PANIC: "guest-panic",
        OutcomeKind.SIGNALLED: "host-signal",
        OutcomeKind.QUIT: "host-ui",
        OutcomeKind.TIMEOUT: "host-ui",
        OutcomeKind.ERROR: "host-error",
    }
)
"""QEMU's ShutdownCause for each kind of outcome."""


def version() -> Json:
    """VersionInfo: pykvm's version, in the members that clients expect."""
    major, minor, micro = (int(part) for part in re.findall(r"\d+", __version__)[:3])
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"pykvm {__version__}",
    }


def status(state: RunState) -> Json:
    """StatusInfo."""
    return {"status": state.value, "running": state is RunState.RUNNING}


def block_info(disk: Disk) -> Json:
    """BlockInfo, with BlockDeviceInfo and ImageInfo in it."""
    image = disk.device.image
    cache = image.cache
    return {
        "device": disk.name,
        "type": "unknown",
        "removable": False,
        "locked": False,
        "io-status": disk.io_status.value,
        "inserted": {
            **name_fields("file", image.path),
            "node-name": disk.name,
            "ro": image.readonly,
            "drv": "raw",
            "encrypted": False,
            "backing_file_depth": 0,
            "detect_zeroes": disk.config.detect_zeroes.value,
            **_limits(disk.limits),
            "cache": {
                "writeback": disk.device.writeback,
                "direct": cache.direct,
                "no-flush": cache is CacheMode.UNSAFE,
            },
            "image": {
                **name_fields("filename", image.path),
                "format": "raw",
                "virtual-size": image.size,
                "dirty-flag": False,
            },
        },
    }


def _limits(limits: RateLimits) -> Json:
    """The rate limits. As in QEMU, the plain ones are always there, the rest only if set."""
    always = {name: value for name, value in vars(limits).items() if name in PLAIN_RATES}
    return always | {name: value for name, value in vars(limits).items() if value}


def block_stats(disk: Disk) -> Json:
    """BlockStats. Failed and invalid requests count only in their own members."""
    counted = disk.device.stats
    stats = {
        **counted.as_dict(),
        **counted.histograms(),
        "account_failed": False,
        "account_invalid": False,
    }
    return {"device": disk.name, "node-name": disk.name, "stats": stats}


def event_message(event: Event) -> Json | None:
    """``event`` as a QMP message; None if QMP has no such event."""
    match event:
        case Stop():
            name, data = "STOP", None
        case Resume():
            name, data = "RESUME", None
        case BlockIoError():
            name, data = "BLOCK_IO_ERROR", _io_error(event)
        case GuestPanicked():
            name, data = "GUEST_PANICKED", {"action": "poweroff", "reason": event.reason}
        case Shutdown():
            name, data = "SHUTDOWN", _shutdown(event.outcome)
        case JobStatusChange():
            name, data = "JOB_STATUS_CHANGE", {"id": event.id, "status": event.status}
        case _:
            return None
    seconds, rest = divmod(event.time_ns, 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": rest // 1000}
    message: dict[str, Any] = {"timestamp": timestamp, "event": name}
    return message if data is None else {**message, "data": data}


def _io_error(event: BlockIoError) -> dict[str, Any]:
    error = event.error
    return {
        "device": event.device,
        "node-name": event.device,
        "operation": error.operation,
        "action": error.action.value,
        "nospace": error.full,
        "reason": os.strerror(error.errno),
        "sector": error.sector,
        "length": error.length,
        "errno": error.errno,
    }


def _shutdown(outcome: Outcome) -> dict[str, Any]:
    reason = "host-qmp-quit" if outcome == QUIT else _REASONS[outcome.kind]
    return {
        "guest": reason.startswith("guest"),
        "reason": reason,
        "end": outcome.kind.name.lower(),
        "status": outcome.status,
    }
