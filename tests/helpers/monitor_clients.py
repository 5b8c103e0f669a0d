"""Clients of a machine's monitor: QEMU's own, and one that sends and reads anything."""

import asyncio
import json
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

from patience import PATIENCE
from qemu.qmp import QMPClient

from pykvm.bare import Script
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.machine import DiskConfig, Machine, MachineConfig
from pykvm.monitor import Monitor, MonitorSocket


@contextmanager
def served(path: Path, config: MachineConfig):
    """A machine that is not started yet, with its monitor."""
    with MonitorSocket(path) as listener, Machine(config) as machine, Monitor(listener, machine):
        yield machine


def spinning_guest(kernel: Path) -> MachineConfig:
    return MachineConfig(kernel=kernel, append="spin", memory=MEMORY_NEEDED)


def with_disk(kernel: Path, script: Script, disk: DiskConfig) -> MachineConfig:
    return MachineConfig(
        kernel=kernel,
        append="script",
        initrd=script.encode(),
        memory=MEMORY_NEEDED,
        disks=[disk],
    )


def listens(path: Path) -> bool:
    """True if a process listens at ``path``: the file exists a moment before that."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False


class Raw:
    """A client that sends and reads anything."""

    def __init__(self, path: Path, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")
        self.greeting = self.read()
        if negotiate:
            assert self.ask("qmp_capabilities") == {"return": {}}

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> dict | None:
        """The next message; None at the end."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def ask(self, command: str, **more: object) -> dict:
        """Execute ``command``; its answer."""
        self.send(json.dumps({"execute": command, **more}).encode())
        while "event" in (message := self.read()):
            pass
        return message

    def events(self, last: str) -> list[dict]:
        """The events up to ``last``, which is included."""
        found = [self.read()]
        while found[-1]["event"] != last:
            found.append(self.read())
        return found


def run_client(path: Path, talk) -> object:
    """The result of the coroutine ``talk(client)``, with QEMU's client connected to ``path``."""

    async def whole() -> object:
        client = QMPClient("test")
        await client.connect(str(path))
        try:
            return await asyncio.wait_for(talk(client), PATIENCE)
        finally:
            with suppress(Exception):
                await client.disconnect()

    return asyncio.run(whole())
