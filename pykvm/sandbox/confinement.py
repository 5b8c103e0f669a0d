"""Puts this process into its sandbox, as far as the host can."""

import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from pykvm.errors import HostError, PykvmError
from pykvm.host.libc import keep_library, prctl
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.sandbox import landlock, seccomp
from pykvm.sandbox.rules import allowed

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_SECONDS = 0.5
_PR_SET_NO_NEW_PRIVS = 38


class Confinement:
    """What holds: in ``parts`` each part of the sandbox by name, with why it is missing, or ""."""

    def __init__(self, parts: dict[str, str]) -> None:
        self.parts = parts

    def __str__(self) -> str:
        """For people, without a full stop."""
        held = ", ".join(name for name, problem in self.parts.items() if not problem)
        missing = "".join(f"; {problem}" for problem in self.parts.values() if problem)
        return (held or "nothing") + missing


def confine(*, socket: "Path | None" = None, insist: bool = False) -> Confinement:
    """Confine this process for good: what it needs is open and imported, and no thread runs yet.

    It keeps the file ``socket`` removable, and all of its folder with it.
    HostError if a part is missing and the user ``insist``s; PykvmError if a thread runs.
    """
    _check_threads()
    _load_libraries()
    rules = allowed(
        os.getpid(),
        monitor=socket is not None,
        # Imported for disks that may have a ring, and for no others.
        rings="pykvm.host.io_uring" in sys.modules,
    )
    steps: dict[str, Callable[[], None]] = {
        "limits": _limit_resources,
        "no_new_privs": _forbid_new_privileges,
        "landlock": lambda: landlock.restrict(socket and socket.parent),
        "seccomp": lambda: seccomp.load(rules),
    }
    parts = {}
    for name, step in steps.items():
        try:
            step()
            parts[name] = ""
        except HostError as error:
            if insist:
                hint = "'pykvm doctor' shows what there is; --sandbox=auto does without the rest"
                raise HostError(f"--sandbox=on: {error.message}", hint) from None
            parts[name] = error.message
    return Confinement(parts)


def _check_threads() -> None:
    """PykvmError if other threads run, which would go free.

    None of ours does, but those that have been joined may take a moment to be gone.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise PykvmError(
                "pykvm cannot confine itself, for there are threads already",
                "a debugger or profiler that makes some needs --sandbox=off",
            )
        time.sleep(0.001)


def _load_libraries() -> None:
    """Have those loaded that are asked for later: they are found then, without opening a file."""
    # glibc needs libgcc_s to end a thread in its middle, else it ends the process, and Python ends
    # threads so that still run at its own end.
    for library in (seccomp.LIBRARY, "libgcc_s.so.1"):
        with suppress(OSError):
            keep_library(library)


def _forbid_new_privileges() -> None:
    """No program that is started gains any."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _limit_resources() -> None:
    """No core dump, for the guest's memory would be in it; and no more descriptors than now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
