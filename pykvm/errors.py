"""Errors that a user can act on, and printable text.

There are three kinds of mistake. A guest's mistake is a value (a status byte,
DEVICE_NEEDS_RESET), never an exception. A user's or a host's mistake is a
:class:`PykvmError`, which tells the reason and the next step. A bug is an
assertion.
"""

import errno
import os
from types import MappingProxyType

from pykvm.lean.typing_names import Final

_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN)
_LIMITS: Final = MappingProxyType(
    {errno.EMFILE: " (ulimit -n)", errno.EFBIG: " for its filesystem or the limit (ulimit -f)"}
)
"""Errors that a limit of the process may cause, and that limit."""


class PykvmError(Exception):
    """A run cannot begin or continue.

    ``message`` is one sentence without a full stop: the failure and its
    reason. ``hint`` is the next step, and may be empty. ``exit_status`` is the
    command line's (125: pykvm failed).
    """

    exit_status = 125

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(PykvmError):
    """An option, a file or a value that the user gave cannot be used."""

    exit_status = 2


class HostError(PykvmError):
    """This host cannot run a VM: no /dev/kvm, no permission, too old."""

    exit_status = 77


def shown(text: str, keep: str = "", most: int = 0) -> str:
    """``text`` as one printable line, which does nothing to a terminal.

    A byte that is not UTF-8 (as in a file's name) becomes ``\\xNN``. A control character becomes
    Python's escape for it, unless it is one of ``keep``. ``most``: text after this number of
    characters is left out; 0 keeps all.
    """
    if most and len(text) > most:
        text = text[:most] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return f"\\u{number:04x}" if 0x80 <= number < 0x100 else ascii(char)[1:-1]


def guest_text(data: bytes) -> str:
    """A line of text from the guest, as :func:`shown` makes it printable."""
    return shown(data.decode("utf-8", "replace").strip())


def reason_of(error: OSError) -> str:
    """Why a system call failed, as part of a sentence; it names a limit that may be the cause."""
    if not error.errno:
        return (error.strerror or "").lower()
    return error_text(error.errno) + _LIMITS.get(error.errno, "")


def error_text(number: int) -> str:
    """The system's description of the errno ``number``, as part of a sentence."""
    return os.strerror(number).lower()


def shortage(error: Exception) -> str:
    """The resource that the host has run out of, as part of a sentence; "" for other errors.

    Such a resource (files, memory, threads) may run out in the middle of a run.
    """
    if isinstance(error, HostError):
        return error.message
    if isinstance(error, PykvmError) and getattr(error, "errno", 0) in _SHORTAGES:
        return error.message  # of a failed system call, such as an ioctl
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return reason_of(error)
    return ""
