"""What the user sees while the guest is built, and the commands that build it.

On a terminal a running step is one line that counts the seconds; elsewhere each finished step is
one plain line. All of it goes to standard error.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .problem import BuildError

_LAST_LINES = 15


@contextmanager
def step(title: str) -> Iterator[None]:
    """Shows `title` as running until the block ends, and then how long it took."""
    terminal = sys.stderr.isatty()
    started = time.monotonic()
    finished = threading.Event()

    def count() -> None:
        while not finished.wait(1 if terminal else None):
            _write(f"\r\x1b[K{title} ... {time.monotonic() - started:.0f} s")

    if terminal:
        _write(f"{title} ...")
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        finished.set()
        counter.join()
        erase = "\r\x1b[K" if terminal else ""
        _write(f"{erase}{title}: {outcome} {time.monotonic() - started:.1f} s\n")


def note(text: str) -> None:
    """One line for the user."""
    _write(text + "\n")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def run(
    command: Sequence[str],
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Runs a build command with its output appended to `log`.

    Raises BuildError with the last lines and the log's path when it fails or does not exist; `hint`
    says what the user can do about it.
    """
    with log.open("ab") as output:
        output.write(f"+ {' '.join(command)}\n".encode())
        output.flush()
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                check=False,
            ).returncode
        except OSError as error:
            raise BuildError(f"{command[0]} could not be run: {error.strerror}. {hint}") from error
    if status:
        raise BuildError(
            f"`{_shortened(command)}` ended with status {status}. {hint}\n"
            f"{_tail(log)}\nThe whole log is {log}"
        )


def capture(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command's standard output. Raises BuildError with what it said when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} could not be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise BuildError(f"`{_shortened(command)}` failed: {said}")
    return done.stdout


def _shortened(command: Sequence[str]) -> str:
    text = " ".join(command)
    return text if len(text) < 120 else text[:117] + "..."


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join("    " + line for line in lines)
