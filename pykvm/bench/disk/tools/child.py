"""Child processes that end with their block, or with this process."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from pykvm.errors import PykvmError, reason_of
from pykvm.host.libc import prctl

_PR_SET_PDEATHSIG = 1


@contextmanager
def running(command: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A context in which ``command`` runs as a child process; PykvmError if it cannot be run.

    Its standard output is a pipe, and its standard error goes to ``errors``. It does not get the
    terminal's Ctrl-C. It is killed at the end of the block, or when this process is killed.
    """
    us = os.getpid()
    # If a signal's handler raised after the fork but before Popen returns, the child would stay.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            process_group=0,
            # With this variable Python would compile all of pykvm at each start, which no
            # installed program does.
            env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            # preexec_fn is unsafe in a program with threads, but bench has none.
            preexec_fn=lambda: _begin(us, before),  # noqa: PLW1509
        )
    except BaseException as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if isinstance(error, OSError):
            raise PykvmError(f"{command[0]} cannot be run: {reason_of(error)}") from None
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _begin(parent: int, signals: set[int | signal.Signals]) -> None:
    """In the child, before the program: die with ``parent``, and set the signal mask."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before prctl(), so no signal will come.
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def last_words(errors: IO[bytes]) -> str:
    """The last two lines of a process's standard error, as the end of a sentence; or ""."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f", saying '{'; '.join(line.strip() for line in lines[-2:])}'" if lines else ""
