"""Builds the witness, and starts it in a guest."""

import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Final

from pykvm import Guest, UsageError
from pykvm.machine.snapshot import MachineSnapshot
from soak.linux.ledger import DISK_BYTES, WORKERS, Ledger, LedgerError, find_pages

SOURCE: Final = Path(__file__).with_name("witness.c")
FLAGS: Final = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-mgeneral-regs-only"),
    *("-static", "-no-pie", "-fno-pie", "-nostdlib", "-s", "-Wl,--build-id=none"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    "-fno-tree-loop-distribute-patterns",
)
_PAGE: Final = 4096
_PAUSE: Final = 0.01


@cache
def build() -> bytes:
    """The witness as a static program for Linux; UsageError without a C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "witness"
        command = ["cc", *FLAGS, "-o", str(output), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError:
            raise UsageError("the witness needs a C compiler", "install gcc and binutils") from None
        except subprocess.CalledProcessError as error:
            raise UsageError(f"the witness does not build: {error.stderr}") from None
        return output.read_bytes()


class Witness:
    """The witness in one guest, and in all guests that begin from its snapshots."""

    def __init__(self, guest: Guest, nonce: int, patience: float) -> None:
        """Start it in ``guest``, on its first disk."""
        self.nonce = nonce
        self._patience = patience
        guest.push(build(), "/tmp/witness", 0o755)
        guest.run(["/tmp/witness", "/dev/vda", str(nonce)])
        deadline = time.monotonic() + patience
        while True:
            try:
                self._places = find_pages(guest.machine.ram.bytes, nonce)
                return
            except LedgerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def ledger(self, guest: Guest) -> Ledger:
        """The ledger in the memory of ``guest``, which runs or stands still."""
        return self._read(guest.machine.ram.bytes)

    def saved(self, snapshot: MachineSnapshot) -> Ledger:
        """The ledger in the memory of a snapshot."""
        with snapshot.frozen.bytes as ram:
            return self._read(ram)

    def _read(self, ram: memoryview) -> Ledger:
        return Ledger.read(self.nonce, [bytes(ram[at : at + _PAGE]) for at in self._places])

    def look(self, guest: Guest, earlier: Ledger) -> Ledger:
        """Stop ``guest`` for a moment: it follows ``earlier``, and its disk agrees with it."""
        guest.pause()
        now = self.ledger(guest)
        now.check_follows(earlier)
        now.check_disk(guest.disks[0].read(0, DISK_BYTES))
        guest.resume()
        return now

    def wait_for_more(self, guest: Guest, earlier: Ledger) -> None:
        """Wait until each worker of ``guest`` has completed a call after ``earlier``."""
        deadline = time.monotonic() + self._patience
        while not all(
            now > then for now, then in zip(self.ledger(guest).calls, earlier.calls, strict=True)
        ):
            if time.monotonic() > deadline:
                counts = self.ledger(guest).calls
                raise LedgerError(
                    f"the guest stands still ({guest.machine.status.value}): {WORKERS} workers "
                    f"counted {earlier.calls}, and now {counts}"
                )
            time.sleep(_PAUSE)
