"""Puts this process into its sandbox, as far as the host can."""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from pykvm.errors import HostError, PykvmError
from pykvm.host.libc import keep_library, prctl
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.sandbox import landlock, seccomp
from pykvm.sandbox.rules import Rule, allowed

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_SECONDS = 0.5
_PR_SET_NO_NEW_PRIVS = 38


class Confinement:
    """The sandbox of a process. ``parts`` has for each part the reason why it is missing, or ""."""

    def __init__(self, parts: dict[str, str]) -> None:
        self.parts = parts

    def __str__(self) -> str:
        """The parts that hold and the reasons for missing ones, without a full stop."""
        held = ", ".join(name for name, problem in self.parts.items() if not problem)
        missing = "".join(f"; {problem}" for problem in self.parts.values() if problem)
        return (held or "nothing") + missing


def confine(
    *, socket: "Path | None" = None, snapshots: "Path | None" = None, insist: bool = False
) -> Confinement:
    """Confine this process permanently. It must have opened and imported everything that it needs.

    The file ``socket``, and every file of its folder, stays removable. In the folder ``snapshots``
    files can be made, written and removed, if the host has Landlock. HostError if a part is
    missing and ``insist`` is true; PykvmError if other threads run, because they would stay free.
    """
    _check_threads()
    _load_libraries()

    def rules() -> Iterator[Rule]:
        return allowed(
            os.getpid(),
            monitor=socket is not None,
            # Only Landlock confines the calls that make files to one folder.
            snapshots=snapshots is not None and not parts["landlock"],
            # This module is imported only for disks that may use io_uring.
            rings="pykvm.host.io_uring" in sys.modules,
        )

    steps: dict[str, Callable[[], None]] = {
        "limits": _limit_resources,
        "no_new_privs": _forbid_new_privileges,
        "landlock": lambda: landlock.restrict(socket and socket.parent, snapshots),
        "seccomp": lambda: seccomp.load(rules()),
    }
    parts: dict[str, str] = {}
    for name, step in steps.items():
        try:
            step()
            parts[name] = ""
        except HostError as error:
            if insist:
                hint = "see 'pykvm doctor', or use --sandbox=auto to run without the missing part"
                raise HostError(f"--sandbox=on: {error.message}", hint) from None
            parts[name] = error.message
    return Confinement(parts)


def _check_threads() -> None:
    """PykvmError if other threads run, because the sandbox would not hold for them.

    pykvm has no threads yet, but a thread that was joined may take a moment to end.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise PykvmError(
                "pykvm cannot confine itself, because the process already has threads",
                "use --sandbox=off with a debugger or profiler that starts threads",
            )
        time.sleep(0.001)


def _load_libraries() -> None:
    """Load the libraries that are needed later, when the process can open no file."""
    # At its end Python cancels threads that still run. For that glibc needs libgcc_s, and aborts
    # the process without it.
    for library in (seccomp.LIBRARY, "libgcc_s.so.1"):
        with suppress(OSError):
            keep_library(library)


def _forbid_new_privileges() -> None:
    """Make sure that no started program gains privileges."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _limit_resources() -> None:
    """Forbid core dumps, which would contain the guest's memory, and a higher limit of files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
