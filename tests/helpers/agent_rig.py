"""A client of the agent, the line to its guest, and recorders of events."""

import struct

from pykvm.agent.client import AgentClient
from pykvm.agent.protocol import FrameDecoder, Kind, RunRequest, encode

ENTROPY = bytes(range(32))


def hello(number=0, version=3, problem=b""):
    return encode(Kind.HELLO, struct.pack("<HQ", version, number) + problem)


class Events:
    """Records the events of one request, or of the conversation."""

    def __init__(self):
        self.log = []

    def ready(self):
        self.log.append("ready")

    def stdout(self, data):
        self.log.append(("stdout", data))

    def stderr(self, data):
        self.log.append(("stderr", data))

    def data(self, data):
        self.log.append(("data", data))

    def exited(self, exit):
        self.log.append(exit)

    def done(self, mode):
        self.log.append(("done", mode))

    def failed(self, reason):
        self.log.append(("failed", reason))

    def room(self):
        self.log.append("room")


class Session:
    """A client, the line to its guest, and a recorder of events."""

    def __init__(self):
        self.line = bytearray()
        self.events = Events()
        self.client = AgentClient(self._send, self.events)

    def _send(self, data):
        self.line += data
        return True

    def sent(self):
        """The frames that the guest got since the last call."""
        frames = FrameDecoder().feed(bytes(self.line))
        self.line.clear()
        return frames

    def get(self, kind, payload=b"", id=1):
        self.client.received(encode(kind, payload, id))

    def run(self, command=b"true", **more):
        events = Events()
        return self.client.run(RunRequest(command, **more), events), events

    def wake(self, *, now=1, entropy=ENTROPY, disks=False):
        """Wakes the guest, and returns the number that it has to answer with."""
        self.client.wake(now, entropy, disks)
        frame = FrameDecoder().feed(bytes(self.line))[0]
        return int.from_bytes(frame.payload[:8], "little")
