"""A long command: its progress, and its end by a signal."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pykvm.cli.process import signals_go_to
from pykvm.cli.say import STDERR, put


class Stopped(BaseException):
    """A signal asks for the end. Not an Exception, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Stop:
    """Ends the measurement at the first signal, and ignores later ones during the clean-up."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int) -> None:
        if not self._asked:
            self._asked = True
            raise Stopped(number)


@contextmanager
def stops_at_signals() -> Iterator[None]:
    """A context in which the first signal raises Stopped."""
    with signals_go_to(_Stop()):
        yield


class Progress:
    """Shows the progress in one line of the terminal, and erases the line at the end."""

    def __init__(self) -> None:
        self.shown = os.isatty(STDERR)

    def __call__(self, text: str) -> None:
        """Show ``text`` in place of the former text."""
        if self.shown:
            put(STDERR, f"\r\033[K{text}")

    def clear(self) -> None:
        """Erase the line."""
        self("")
