"""A run of pykvm on a new terminal, on which a test types and reads."""

import os
import pty
import select
import subprocess
import sys
import termios
import time

from patience import PATIENCE, until


class Terminal:
    """A run on a new terminal."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (24, 80)) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, size)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pykvm", "boot", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def expect(self, text: bytes, seconds: float = PATIENCE) -> None:
        """Read until ``text`` has appeared."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} not in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096)

    def type(self, text: bytes) -> None:
        """Type keys. Text that appeared before no longer counts for :meth:`expect`."""
        self.seen = b""
        os.write(self.master, text)

    def wait_until_raw(self) -> None:
        """Return once the terminal is in raw mode."""
        until(
            lambda: not termios.tcgetattr(self.slave)[3] & termios.ICANON,
            "the terminal was never raw",
        )

    def finish(self, seconds: float = PATIENCE) -> int:
        """Wait for the exit status, and check that the terminal was restored."""
        status = self.process.wait(seconds)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self) -> None:
        """Clean up."""
        self.process.kill()
        self.process.wait()
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)
