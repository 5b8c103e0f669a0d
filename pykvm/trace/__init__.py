"""Traces: every step of a machine's disks, written to a file and read from it, or kept in memory.

==============  =============================================================
module          contents
==============  =============================================================
``options``     the user's options
``events``      the names of events, and the interface of their receiver (pure)
``formats``     events as JSON Lines, and for Chrome's trace viewers (pure)
``file``        writes the file, in a thread
``log``         keeps events in memory
``reader``      reads events from JSON Lines, which may be hostile (pure)
``summary``     a trace in words and figures (pure)
``plot``        sector over time, as SVG (pure)
==============  =============================================================
"""

from pykvm.trace.options import TraceFormat, TraceOptions

__all__ = ["TraceFormat", "TraceOptions"]
