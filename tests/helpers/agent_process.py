"""The guest's agent as a process of this machine, and the host's end of its two ways to speak."""

import contextlib
import mmap
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from patience import patience

from pykvm.agent.mailbox import Rings

HELLO, STDOUT, STDERR, EXIT, ERROR, CREDIT, DATA, DONE = range(1, 9)
RUN, RUN_PART, STDIN, STDIN_EOF, SIGNAL, POWEROFF, RESIZE, WAKE = range(0x81, 0x89)
OUTPUT_CREDIT, PUSH, PULL, DMESG, RESCAN = range(0x89, 0x8E)

OUTPUT_WINDOW = 256 * 1024
FIRST_HELLO = struct.pack("<HQ", 3, 0)


def shell(command: str | bytes, timeout_ms: int = 0, flags: int = 1) -> bytes:
    """The payload of RUN for a shell line."""
    line = command if isinstance(command, bytes) else command.encode()
    return struct.pack("<BIHH", flags, timeout_ms, 1, 0) + b"\0" + line + b"\0"


def program(*arguments: bytes, env: Sequence[bytes] = (), cwd: bytes = b"") -> bytes:
    """The payload of RUN for a program."""
    head = struct.pack("<BIHH", 0, 0, len(arguments), len(env))
    return head + b"".join(string + b"\0" for string in (cwd, *env, *arguments))


class Job:
    """What came for one request."""

    def __init__(self) -> None:
        self.output = {STDOUT: b"", STDERR: b"", DATA: b""}
        self.credit = 0
        self.end: tuple[int, bytes] | None = None

    @property
    def result(self) -> tuple[int, bytes, bytes]:
        """Shell status, output, error output."""
        assert self.end is not None
        kind, data = self.end
        assert kind == EXIT, data
        status, number, _ = data
        return 128 + number if number else status, self.output[STDOUT], self.output[STDERR]


class Host:
    """The host's end of the channel."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self.jobs: dict[int, Job] = {}
        line.settimeout(patience())

    def send(self, kind: int, data: bytes = b"", id: int = 1) -> None:
        """Sends one frame."""
        self.send_bytes(struct.pack("<BBH", kind, id, len(data)) + data)
        if kind in (RUN, PUSH, PULL, DMESG):
            self.jobs[id] = Job()

    def raw(self, data: bytes) -> None:
        """Sends bytes that need not be a frame."""
        self.send_bytes(data)

    def send_bytes(self, data: bytes) -> None:
        """Sends bytes the way this host's agent takes them."""
        self._line.sendall(data)

    def receive(self) -> tuple[int, int, bytes]:
        """The next frame: kind, id, payload."""
        kind, id, length = struct.unpack("<BBH", self._exactly(4))
        assert length <= 32 * 1024
        return kind, id, self._exactly(length)

    def step(self) -> None:
        """Puts the next frame to its request."""
        kind, id, data = self.receive()
        job = self.jobs[id]
        assert job.end is None
        if kind == CREDIT:
            job.credit += struct.unpack("<I", data)[0]
        elif kind in (EXIT, ERROR, DONE):
            job.end = kind, data
        else:
            job.output[kind] += data

    def finish(self, id: int = 1, *, read: bool = True) -> Job:
        """Waits for the end of a request; ``read``: gives credit for its output."""
        job = self.jobs[id]
        told = dict(job.output)
        while job.end is None:
            self.step()
            new = [len(job.output[kind]) - len(told[kind]) for kind in (STDOUT, STDERR, DATA)]
            if read and max(new) >= OUTPUT_WINDOW // 2 and job.end is None:
                self.send(OUTPUT_CREDIT, struct.pack("<II", new[0] + new[2], new[1]), id)
                told = dict(job.output)
        return job

    def run(self, command: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """Runs a command with ``data`` as its input; returns status, output, error output."""
        self.send(RUN, shell(command))
        self.feed(data)
        self.send(STDIN_EOF)
        return self.finish().result

    def feed(self, data: bytes, id: int = 1) -> None:
        """Sends ``data`` as input, a window at a time, while the request goes on."""
        job = self.jobs[id]
        job.credit = 64 * 1024
        read = 0
        while data and job.end is None:
            size = min(len(data), job.credit, 32 * 1024)
            job.credit -= size
            self.send(STDIN, data[:size], id)
            data = data[size:]
            while not job.credit and job.end is None:
                self.step()
            if len(job.output[STDOUT]) - read > OUTPUT_WINDOW // 2 and job.end is None:
                self.send(OUTPUT_CREDIT, struct.pack("<II", len(job.output[STDOUT]) - read, 0), id)
                read = len(job.output[STDOUT])

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._line.recv(count - len(data))
            assert more, "the agent ended"
            data += more
        return data


class FileMailbox:
    """A mailbox in a file, in place of the guest's RAM."""

    def __init__(self, path: Path) -> None:
        self.size = 512 * 1024
        with path.open("w+b") as file:
            file.truncate(self.size)
            self._map = mmap.mmap(file.fileno(), self.size)
        self._words = memoryview(self._map).cast("Q")

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def word(self, offset: int) -> int:
        return self._words[offset // 8]

    def set_word(self, offset: int, value: int) -> None:
        self._words[offset // 8] = value


class MailboxHost(Host):
    """The host's end of a mailbox. Each byte on the line says: look."""

    def __init__(self, line: socket.socket, mailbox: FileMailbox) -> None:
        super().__init__(line)
        self._rings = Rings(mailbox)
        self._received = b""

    def send_bytes(self, data: bytes) -> None:
        while not self._rings.put(data):
            self._look()
        self._line.sendall(b"\n")

    def _look(self) -> None:
        assert self._line.recv(1), "the agent ended"
        data = self._rings.take()
        assert data is not None
        self._received += data
        # The agent's write to a real bell returns when the host has looked. This one's may not.
        if len(data) > 200_000:
            self._line.sendall(b"\n")

    def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            self._look()
            assert self._rings.used
        data, self._received = self._received[:count], self._received[count:]
        return data


@contextlib.contextmanager
def running(command: list[str], mailbox: Path | None = None) -> Iterator[Host]:
    """A running agent, after its HELLO."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = MailboxHost(ours, FileMailbox(mailbox)) if mailbox else Host(ours)
        places = [str(mailbox), f"0,{512 * 1024},0"] if mailbox else []
        agent = subprocess.Popen(
            [*command, "--agent", str(theirs.fileno()), *places], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        assert line.receive() == (HELLO, 0, FIRST_HELLO)
        yield line
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        assert agent.wait(timeout=patience()) is not None
