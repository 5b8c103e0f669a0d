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
    client = AgentClient(machine.board.channel.feed, events, memory)
    machine.channel = client.received
    if mailbox is not None:
        mailbox.connect(client.bell)
    return client
