"""What happens to disks, step by step, in a file: written while a guest runs, read afterwards.

==============  =============================================================
module          what it knows
==============  =============================================================
``options``     what a user can choose
``events``      the names of events, and who takes them (pure)
``formats``     events as JSON Lines, and for Chrome's trace viewers (pure)
``file``        the file that is written, and its thread
``reader``      events from JSON Lines that anybody may have written (pure)
``summary``     what a trace says, in words and figures (pure)
``plot``        sector over time, as SVG (pure)
==============  =============================================================
"""

from pykvm.trace.options import TraceFormat, TraceOptions

__all__ = ["TraceFormat", "TraceOptions"]
