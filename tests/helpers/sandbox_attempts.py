"""The attempts of an attacker in a confined process, and the actions that pykvm must still do.

As a program, ``sandbox_attempts.py FOLDER [PART]`` confines itself, with a
monitor's socket in ``FOLDER/monitor``. It makes each attempt in a thread, and prints
the results as JSON, by groups. PART is the only part of Landlock and the filter, without
it both are in force; "none" means unconfined.
"""

import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pykvm.errors import HostError
from pykvm.host.io_uring import Ring
from pykvm.host.libc import address, system_call
from pykvm.sandbox import confine, landlock, seccomp

Attempts = dict[str, Callable[[], object]]

_IORING_OP_OPENAT = 18
_NR_PTRACE, _PTRACE_ATTACH, _NOBODY = 101, 16, 1 << 30
_NR_UNSHARE, _CLONE_NEWUSER = 272, 0x1000_0000


def prepare(folder: Path) -> None:
    """Make the targets of the attempts."""
    (folder / "file").write_text("secret")
    (folder / "victim").touch()
    (folder / "monitor").mkdir()
    (folder / "monitor" / "socket").touch()


def on_files(folder: Path) -> Attempts:
    """Attempts to reach ``folder``, by name."""
    file = folder / "file"
    client, server = socket.socket(), socket.socket()
    return {
        "read a file": file.read_bytes,
        "make a file": (folder / "new").touch,
        "truncate a file": lambda: os.truncate(file, 0),
        "make a folder": (folder / "sub").mkdir,
        "make a link": lambda: os.symlink(file, folder / "link"),
        "list a folder": lambda: os.listdir(folder),
        "remove a file": (folder / "victim").unlink,
        "rename a file": lambda: file.rename(folder / "other"),
        "read its own memory": lambda: open("/proc/self/mem", "rb").close(),
        "start a program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "connect by TCP": lambda: connect(client),
        "listen by TCP": lambda: server.bind(("127.0.0.1", 0)),
    }


def by_system_calls() -> Attempts:
    """Attempts that only a filter of system calls refuses."""
    return {
        "fork": fork,
        "make a socket": lambda: socket.socket(socket.AF_INET).close(),
        "signal another process": lambda: os.kill(os.getppid(), 0),
        "trace another process": trace,
        "change its user": lambda: os.setuid(os.getuid()),
        "change a limit": lambda: resource.prlimit(0, resource.RLIMIT_CORE, (0, 0)),
        "make memory executable": lambda: mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC
        ).close(),
    }


def for_the_desperate() -> Attempts:
    """Attempts that cannot be made where they might succeed."""
    _, terminal = os.openpty()
    return {
        "become a program": lambda: os.execv(sys.executable, ["python", "-c", ""]),
        "make a namespace": lambda: system_call(_NR_UNSHARE, _CLONE_NEWUSER),
        "type on the terminal": lambda: fcntl.ioctl(terminal, termios.TIOCSTI, b"x"),
    }


def needed(folder: Path) -> Attempts:
    """The actions that must still work."""
    read, write = os.pipe()
    return {
        "use what is open": lambda: os.read(read, os.write(write, b"x")),
        "start a thread": threading.Thread(target=os.getpid).start,
        "take time": lambda: time.sleep(0.001),
        "get memory": lambda: mmap.mmap(-1, 1 << 20).close(),
        "signal itself": lambda: os.kill(os.getpid(), signal.SIGCONT),
        "make an eventfd": lambda: os.close(os.eventfd(0)),
        "remove the socket": (folder / "monitor" / "socket").unlink,
    }


def outcomes(attempts: Attempts) -> dict[str, str]:
    """The result of each: "done", or the name of its errno."""
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    return found


def fork() -> None:
    """A child that ends at once."""
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def trace() -> None:
    """Attach to a missing process: the error for that shows that ptrace was allowed."""
    try:
        system_call(_NR_PTRACE, _PTRACE_ATTACH, _NOBODY, 0, 0)
    except ProcessLookupError:
        return


def connect(client: socket.socket) -> None:
    """Connect to a closed port: the error for that shows that the network was reached."""
    try:
        client.connect(("127.0.0.1", 1))
    except ConnectionRefusedError:
        return


def by_io_uring(folder: Path) -> Attempts:
    """Attempts that no filter of system calls sees; none on a host without io_uring."""
    name = os.fsencode(folder.absolute() / "file") + b"\0"
    try:
        ring = Ring(1)
    except HostError:
        return {}

    def open_file() -> None:
        # The path is absolute: no folder's descriptor counts.
        ring.prepare(_IORING_OP_OPENAT, 0, 0, address(name), 0, os.O_RDONLY, tag=1)
        ring.submit()
        while not ring.completed():
            time.sleep(0.001)
        ring.take()
        if ring.result < 0:
            raise OSError(-ring.result, "io_uring")

    return {"read a file by io_uring": open_file}


def main(folder: Path, part: str) -> None:
    """Make the attempts, and print the results."""

    def missing(*arguments: object) -> None:
        raise HostError("not there")

    groups = {"needed": needed(folder), "io_uring": by_io_uring(folder)}
    groups |= {"files": on_files(folder), "calls": by_system_calls()}
    if part == "landlock":
        seccomp.load = missing
    elif part == "seccomp":
        landlock.restrict = missing
    if part != "none":
        groups["desperate"] = for_the_desperate()
        confine(socket=folder / "monitor" / "socket")
    found: dict[str, dict[str, str]] = {}

    def attempt() -> None:
        found.update((name, outcomes(group)) for name, group in groups.items())

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
