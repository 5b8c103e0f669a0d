"""Connects the host's side of the agent with a machine."""

from pykvm.agent.client import AgentClient, ClientEvents
from pykvm.machine.machine import Machine


def connect(machine: Machine, events: ClientEvents) -> AgentClient:
    """A new client for the agent in ``machine``, which was configured with ``agent=True``.

    It takes the place of an earlier one. If ``machine`` begins from a snapshot, or was put back to
    one, call :meth:`AgentClient.wake` before its guest runs.
    """
    mailbox = machine.mailbox
    memory = mailbox.open() if mailbox is not None else None
    client = AgentClient(machine.board.channel.feed, _Listener(machine, events), memory)
    machine.channel = client.received
    if mailbox is not None:
        mailbox.connect(client.bell)
    return client


class _Listener:
    """Passes the events on. An agent that has answered has looked for the machine's disks."""

    def __init__(self, machine: Machine, events: ClientEvents) -> None:
        self._machine = machine
        self._events = events
        self.failed = events.failed

    def ready(self) -> None:
        """See ClientEvents."""
        self._machine.unseen_disks = False
        self._events.ready()
