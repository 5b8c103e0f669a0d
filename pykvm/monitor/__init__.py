"""``--monitor``: QMP, QEMU's machine protocol, on a UNIX socket.

============  ==========================================================
module        contents
============  ==========================================================
``stream``    JSON messages out of bytes, also after malformed ones (pure)
``protocol``  one client's conversation: greeting, negotiation, errors (pure)
``qapi``      the JSON of answers and events, in QEMU's terms
``commands``  the commands, carried out on a machine
``jobs``      the commands that go on behind their answer
``listener``  the socket file
``server``    the thread that serves the clients
============  ==========================================================
"""

from pykvm.monitor.listener import MonitorSocket
from pykvm.monitor.server import Monitor

__all__ = ["Monitor", "MonitorSocket"]
