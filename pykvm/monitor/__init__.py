"""``--monitor``: QMP, QEMU's machine protocol, on a UNIX socket.

============  ==========================================================
module        what it does
============  ==========================================================
``stream``    bytes → JSON values, and back in step after bad ones (pure)
``protocol``  one client's conversation: greeting, negotiation, errors (pure)
``shapes``    what commands and events look like, in QEMU's terms
``commands``  what each command does to a machine
``listener``  the socket file
``server``    the thread that serves the clients
============  ==========================================================
"""

from pykvm.monitor.listener import MonitorSocket
from pykvm.monitor.server import Monitor

__all__ = ["Monitor", "MonitorSocket"]
