"""Bare-metal guests that are stopped, and the events that announce it."""

import threading
from contextlib import contextmanager

from patience import until

from pykvm.bare import build_bare_guest
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.machine import Machine, MachineConfig
from pykvm.machine.events import Event


def guest(words: str, **more: object) -> MachineConfig:
    return MachineConfig(
        kernel=build_bare_guest(), append=words, **{"memory": MEMORY_NEEDED, **more}
    )


class Log:
    """The events of a machine; ``kinds`` has their kinds."""

    def __init__(self, machine: Machine) -> None:
        self.events: list[Event] = []
        machine.listen(self.events.append)

    @property
    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    def wait_for(self, kind: type[Event], count: int = 1) -> None:
        until(lambda: self.kinds.count(kind) >= count, f"{kind.__name__} {count}")


def port_exits(machine: Machine) -> int:
    return machine.statistics()["exits"].get("IoExit", 0)


@contextmanager
def no_threads_left():
    """The body of this context must end its threads."""
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before
