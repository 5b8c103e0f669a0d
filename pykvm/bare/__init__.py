"""The bare-metal test guest: build it, write scripts for it, read what they did.

The guest (guest/bare/) is a few kilobytes of C that run at CPL3 without an
operating system: in milliseconds it has done what a test asks of a device,
also things that no operating system's driver would do.
"""

from pykvm.bare.arena import Chain, Ring, Segment
from pykvm.bare.block import Batch, BlockDriver, BlockOutcome, BlockRequest
from pykvm.bare.build import build_bare_guest
from pykvm.bare.layout import NotifyMode, RecordError, Region, RunState, WaitMode
from pykvm.bare.results import Results, ScriptError, Step
from pykvm.bare.script import Script, filling

__all__ = [
    "Batch",
    "BlockDriver",
    "BlockOutcome",
    "BlockRequest",
    "Chain",
    "NotifyMode",
    "RecordError",
    "Region",
    "Results",
    "Ring",
    "RunState",
    "Script",
    "ScriptError",
    "Segment",
    "Step",
    "WaitMode",
    "build_bare_guest",
    "filling",
]
