"""Child processes that do not outlive what they are for."""

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
    """``command`` as a process that is gone at the end of the block; PykvmError if it cannot be.

    Its standard output is a pipe, standard error goes to ``errors``, and it
    does not get the terminal's Ctrl-C: that is ours. If this process is
    killed, so is the child.
    """
    us = os.getpid()
    # A signal whose handler raises, after the fork and before we know of the child,
    # would leave the child behind.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            process_group=0,
            # Else Python compiles all of pykvm again at each start: no installed program does.
            env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            # It would be unsafe in a program with threads, of which we have none.
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
    """In the child, before the program: die with ``parent``, and get ``signals`` no more."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It was gone before it could be told of.
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def last_words(errors: IO[bytes]) -> str:
    """The last two lines that a process has said on standard error, to go behind a sentence."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f", saying '{'; '.join(line.strip() for line in lines[-2:])}'" if lines else ""
