"""What the user sees while the guest is built, and the commands that build it.

On a terminal the running steps are one line that counts; elsewhere each finished step is one plain
line, and a long one tells once a minute how far it is. All of it goes to standard error.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .problem import BuildError

_LAST_LINES = 15
_TERMINAL_SECONDS = 1
_PLAIN_SECONDS = 60
_COMPILED = b"\n  CC "
"""What a kernel's make prints for each file that it compiles."""
_ENOUGH_FILES = 20
"""Before so many are compiled, nobody can say how long the rest takes."""


class _Step:
    """A running step. With ``files``, ``log`` tells how many of about so many are compiled."""

    def __init__(self, title: str, log: Path | None, files: int) -> None:
        self.title = title
        self._files = files
        self._log = log.open("rb") if log and files else None
        if self._log:
            self._log.seek(0, os.SEEK_END)
        self._done = 0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def close(self) -> None:
        if self._log:
            self._log.close()

    def text(self) -> str:
        """How far it is."""
        if not self._log:
            return f"{self.title} ... {self.seconds:.0f} s"
        # A line that is torn between two looks is not counted: this is an estimate.
        self._done += self._log.read().count(_COMPILED)
        files = max(self._files, self._done)
        text = f"{self.title}: {self._done} of about {files} files"
        if self._done < _ENOUGH_FILES:
            return f"{text}, {self.seconds:.0f} s"
        left = round(self.seconds * (files - self._done) / self._done)
        return f"{text}, about {left // 60}:{left % 60:02} left"


class _Display:
    """The steps that run, shown by a thread while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._steps: list[_Step] = []

    def add(self, step: _Step) -> None:
        with self._changed:
            self._steps.append(step)
            if len(self._steps) == 1:
                threading.Thread(target=self._run, daemon=True).start()
            self._changed.notify_all()

    def remove(self, step: _Step, outcome: str) -> None:
        with self._changed:
            self._steps.remove(step)
            step.close()
            _write(f"{_erase()}{step.title}: {outcome} {step.seconds:.1f} s\n")
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._steps:
                if sys.stderr.isatty():
                    text = "; ".join(step.text() for step in self._steps)
                    _write(_erase() + text[: shutil.get_terminal_size().columns - 1])
                    self._changed.wait(_TERMINAL_SECONDS)
                elif not self._changed.wait(_PLAIN_SECONDS):
                    _write("".join(f"{step.text()}\n" for step in self._steps))


_display = _Display()


def _erase() -> str:
    return "\r\x1b[K" if sys.stderr.isatty() else ""


@contextmanager
def step(title: str, *, log: Path | None = None, files: int = 0) -> Iterator[None]:
    """Shows `title` as running until the block ends, and then how long it took.

    Steps may run side by side. One that compiles about `files` files of a kernel, with make's
    output in `log`, shows the time that is left.
    """
    running = _Step(title, log, files)
    _display.add(running)
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        _display.remove(running, outcome)


def note(text: str) -> None:
    """One line for the user."""
    _write(text + "\n")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class _Commands:
    """The commands that run, so that those beside one that failed can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], **options: Any) -> int:
        """Its status; BuildError without running it, once commands were stopped."""
        with self._lock:
            if self._stopped:
                raise BuildError("stopped, because something beside it failed")
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self, stopped: bool) -> None:
        """End those that run, and start no more; or allow it again."""
        with self._lock:
            self._stopped = stopped
            for process in self._running:
                process.terminate()


_commands = _Commands()


def together(*tasks: Callable[[], None]) -> None:
    """Runs `tasks` side by side. When one fails, the commands of the others are ended."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            _commands.stop(True)
            raise
        finally:
            pool.shutdown()
            _commands.stop(False)


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
            status = _commands.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
            )
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
