"""Connects the disks of a machine with a trace, in runs that ask for one."""

from contextlib import ExitStack

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace
    from pykvm.machine.config import MachineConfig
    from pykvm.trace.file import TraceFile
    from pykvm.trace.log import TraceLog


def open_trace(stack: ExitStack, config: "MachineConfig") -> "TraceFile | TraceLog | None":
    """The trace that ``config`` asks for, if it does; ``stack`` completes a file. UsageError."""
    if config.trace is None:
        return None
    from pykvm.machine.inputs import inputs_of
    from pykvm.trace.file import TraceFile
    from pykvm.trace.log import TraceLog

    if isinstance(config.trace, TraceLog):
        return config.trace
    return stack.enter_context(TraceFile(config.trace, inputs_of(config)))


def disk_trace(trace: "TraceFile | TraceLog | None", name: str) -> "DiskTrace | None":
    """The recorder of the disk ``name`` in ``trace``; None without one."""
    if trace is None:
        return None
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace

    return DiskTrace(trace, name)
