"""The bare-metal test guest: build it, write scripts for it, read their results.

The guest (guest/bare/) is a few kilobytes of C, which run at CPL3 without an operating system. It
drives a device as a test's script says, in milliseconds, and in ways that no operating system's
driver would.
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
