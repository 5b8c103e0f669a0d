"""The escape key of a console session: Ctrl-a and the key after it. Pure."""

from enum import Enum, auto

PREFIX = 0x01
"""Ctrl-a."""

HELP = (
    "\r\n"
    "Ctrl-a x       end the run\r\n"
    "Ctrl-a s       stop the guest\r\n"
    "Ctrl-a c       let the guest continue\r\n"
    "Ctrl-a w       save the guest in the folder of --save-in\r\n"
    "Ctrl-a h       show this help\r\n"
    "Ctrl-a Ctrl-a  send one Ctrl-a to the guest\r\n"
)
"""For a terminal in raw mode, hence the carriage returns."""


class Key(Enum):
    """A request of the user to pykvm, not to the guest."""

    QUIT = auto()
    STOP = auto()
    CONTINUE = auto()
    SAVE = auto()
    HELP = auto()
    UNKNOWN = auto()
    """Ctrl-a and a key without a meaning. The guest gets neither."""


_KEYS = (
    (b"xX", Key.QUIT),
    (b"sS", Key.STOP),
    (b"cC", Key.CONTINUE),
    (b"wW", Key.SAVE),
    (b"hH?", Key.HELP),
)


class EscapeParser:
    """Splits typed bytes into bytes for the guest and keys for pykvm.

    Ctrl-a and the key after it may arrive in two reads.
    """

    def __init__(self) -> None:
        self._after_prefix = False

    def feed(self, data: bytes) -> list[bytes | Key]:
        """The bytes for the guest and the keys in ``data``, in order; no item is empty."""
        found: list[bytes | Key] = []
        plain = bytearray()
        for byte in data:
            if not self._after_prefix:
                if byte == PREFIX:
                    self._after_prefix = True
                else:
                    plain.append(byte)
                continue
            self._after_prefix = False
            if byte == PREFIX:
                plain.append(PREFIX)
                continue
            if plain:
                found.append(bytes(plain))
                plain.clear()
            found.append(next((key for letters, key in _KEYS if byte in letters), Key.UNKNOWN))
        if plain:
            found.append(bytes(plain))
        return found
