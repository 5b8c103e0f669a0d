"""Connects the disks of a machine with the file of a trace, in runs that ask for one."""

from contextlib import ExitStack

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace
    from pykvm.machine.config import MachineConfig
    from pykvm.trace.file import TraceFile


def open_trace(stack: ExitStack, config: "MachineConfig") -> "TraceFile | None":
    """The file that ``config`` asks for, if it does; ``stack`` completes it. UsageError."""
    if config.trace is None:
        return None
    from pykvm.machine.inputs import inputs_of
    from pykvm.trace.file import TraceFile

    return stack.enter_context(TraceFile(config.trace, inputs_of(config)))


def disk_trace(file: "TraceFile | None", name: str) -> "DiskTrace | None":
    """The recorder of the disk ``name`` in ``file``; None without a file."""
    if file is None:
        return None
    from pykvm.devices.virtio_blk.observe.tracing import DiskTrace

    return DiskTrace(file, name)
