"""A small hypervisor in Python, with a virtio-blk disk to read, watch and break.

Programs and tests use the names of this package::

    import pykvm

    with pykvm.boot() as guest:
        print(guest.run("uname -r").text)

``import pykvm`` imports no other package: each name is imported when it is first used.
docs/tutorial.md introduces the names, and examples/ has programs that use them.
"""

from pykvm.lean.lazy import lazy_names

__version__ = "0.1.0"

TYPE_CHECKING = False  # a type checker takes it for True; importing typing takes too long

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.hooks import IoError
    from pykvm.devices.virtio_blk.layers.fault_rules import Access, Effect, Fault, FaultRule
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan
    from pykvm.devices.virtio_blk.modes import (
        CacheMode,
        DetectZeroes,
        DiscardMode,
        EngineKind,
        ErrorAction,
        ErrorPolicy,
        ImageFormat,
        Locking,
        MergePolicy,
    )
    from pykvm.devices.virtio_blk.open import DiskConfig
    from pykvm.devices.virtio_blk.rates import RateLimits
    from pykvm.devices.virtio_blk.recording import Recording
    from pykvm.errors import HostError, PykvmError, UsageError
    from pykvm.guest.boot import boot
    from pykvm.guest.console import Console
    from pykvm.guest.errors import CommandFailed, GuestDied, GuestError, GuestTimeout
    from pykvm.guest.guest import Guest
    from pykvm.guest.process import InputStream, OutputStream, Process
    from pykvm.guest.result import Result
    from pykvm.guest.snapshot import Guests, Snapshot
    from pykvm.machine.command import CommandResult, run_command, save_booted
    from pykvm.machine.config import ConsoleMode, MachineConfig
    from pykvm.machine.disks import Disk, IoStatus
    from pykvm.machine.events import (
        BlockIoError,
        DiskHeld,
        Event,
        GuestPanicked,
        HostShortage,
        Resume,
        Shutdown,
        Stop,
    )
    from pykvm.machine.machine import Machine
    from pykvm.machine.outcome import Outcome, OutcomeKind
    from pykvm.machine.run_state import RunState
    from pykvm.snapshot.fields import SnapshotError
    from pykvm.trace.log import TraceLog
    from pykvm.trace.options import TraceFormat, TraceOptions

__all__ = [
    "Access",
    "BlockIoError",
    "CacheMode",
    "CommandFailed",
    "CommandResult",
    "Console",
    "ConsoleMode",
    "DetectZeroes",
    "DiscardMode",
    "Disk",
    "DiskConfig",
    "DiskHeld",
    "Effect",
    "EngineKind",
    "ErrorAction",
    "ErrorPolicy",
    "Event",
    "Fault",
    "FaultPlan",
    "FaultRule",
    "Guest",
    "GuestDied",
    "GuestError",
    "GuestPanicked",
    "GuestTimeout",
    "Guests",
    "HostError",
    "HostShortage",
    "ImageFormat",
    "InputStream",
    "IoError",
    "IoStatus",
    "Locking",
    "Machine",
    "MachineConfig",
    "MergePolicy",
    "Outcome",
    "OutcomeKind",
    "OutputStream",
    "Process",
    "PykvmError",
    "RateLimits",
    "Recording",
    "Result",
    "Resume",
    "RunState",
    "Shutdown",
    "Snapshot",
    "SnapshotError",
    "Stop",
    "TraceFormat",
    "TraceLog",
    "TraceOptions",
    "UsageError",
    "boot",
    "run_command",
    "save_booted",
]

if not TYPE_CHECKING:
    # Hidden from type checkers, to which any name would exist otherwise.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "pykvm.devices.virtio_blk.layers.fault_rules": "Access Effect Fault FaultRule",
            "pykvm.devices.virtio_blk.layers.faults": "FaultPlan",
            "pykvm.devices.virtio_blk.hooks": "IoError",
            "pykvm.devices.virtio_blk.modes": "CacheMode DetectZeroes DiscardMode EngineKind "
            "ErrorAction ErrorPolicy ImageFormat Locking MergePolicy",
            "pykvm.devices.virtio_blk.open": "DiskConfig",
            "pykvm.devices.virtio_blk.rates": "RateLimits",
            "pykvm.devices.virtio_blk.recording": "Recording",
            "pykvm.errors": "HostError PykvmError UsageError",
            "pykvm.guest.boot": "boot",
            "pykvm.guest.console": "Console",
            "pykvm.guest.errors": "CommandFailed GuestDied GuestError GuestTimeout",
            "pykvm.guest.guest": "Guest",
            "pykvm.guest.process": "InputStream OutputStream Process",
            "pykvm.guest.result": "Result",
            "pykvm.guest.snapshot": "Guests Snapshot",
            "pykvm.machine.command": "CommandResult run_command save_booted",
            "pykvm.machine.config": "ConsoleMode MachineConfig",
            "pykvm.machine.disks": "Disk IoStatus",
            "pykvm.machine.events": "BlockIoError DiskHeld Event GuestPanicked HostShortage "
            "Resume Shutdown Stop",
            "pykvm.machine.machine": "Machine",
            "pykvm.machine.outcome": "Outcome OutcomeKind",
            "pykvm.machine.run_state": "RunState",
            "pykvm.snapshot.fields": "SnapshotError",
            "pykvm.trace.log": "TraceLog",
            "pykvm.trace.options": "TraceFormat TraceOptions",
        },
    )
