"""The keyboard controller (Intel 8042), for resets only: it has no keyboard and no mouse.

It answers the commands by which drivers probe the controller, so that no driver
waits for a timeout. A byte for the keyboard or the mouse gets no answer. There are
no interrupts, because without the two devices IRQ 1 and 12 have no source.
"""

import threading
from collections.abc import Callable
from types import MappingProxyType

from pykvm.bus import Bus, BusDevice
from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

I8042_DATA = 0x60
I8042_COMMAND = 0x64

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08
STATUS_UNLOCKED = 0x10

READ_CONFIG, WRITE_CONFIG = 0x20, 0x60
TEST_AUX, SELF_TEST, TEST_KEYBOARD = 0xA9, 0xAA, 0xAB
READ_OUTPUT_PORT, WRITE_OUTPUT_PORT = 0xD0, 0xD1
WRITE_KEYBOARD_OUTPUT, WRITE_AUX_OUTPUT, WRITE_AUX = 0xD2, 0xD3, 0xD4
PULSE = 0xF0
"""0xF0 to 0xFF pulse the output lines whose bits are 0. Line 0 is the reset: 0xFE resets."""

SELF_TEST_PASSED = 0x55
KEYBOARD_TEST_PASSED = 0x00
AUX_TEST_FAILED = 0xFF
OUTPUT_RESET, OUTPUT_A20 = 0x01, 0x02
_WITH_PARAMETER = frozenset(
    (WRITE_CONFIG, WRITE_OUTPUT_PORT, WRITE_KEYBOARD_OUTPUT, WRITE_AUX_OUTPUT, WRITE_AUX)
)
_ANSWERS = MappingProxyType(
    {
        TEST_AUX: AUX_TEST_FAILED,
        SELF_TEST: SELF_TEST_PASSED,
        TEST_KEYBOARD: KEYBOARD_TEST_PASSED,
        READ_OUTPUT_PORT: OUTPUT_RESET | OUTPUT_A20,
    }
)


class I8042:
    """The controller. The vCPU thread that requests a reset calls ``reset()``.

    ``data`` is the device of port 0x60, ``command`` that of port 0x64.
    :meth:`attach` puts both on the bus.
    """

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._lock = threading.Lock()
        self._config = 0
        self._output: int | None = None
        self._parameter_of: int | None = None
        self._last_was_command = False
        self.data: BusDevice = _Port(self._read_data, self._write_data)
        self.command: BusDevice = _Port(self._read_status, self._write_command)

    def attach(self, bus: Bus) -> None:
        """Claim ports 0x60 and 0x64. Port 0x61 between them belongs to a different device."""
        bus.add(I8042_DATA, 1, self.data)
        bus.add(I8042_COMMAND, 1, self.command)

    def save(self) -> "Fields":
        """The registers; -1 for no byte."""
        with self._lock:
            return {
                "config": self._config,
                "output": -1 if self._output is None else self._output,
                "parameter_of": -1 if self._parameter_of is None else self._parameter_of,
                "last_was_command": self._last_was_command,
            }

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave. SnapshotError."""
        with self._lock:
            self._config = saved.integer("config", 0, 0xFF)
            output = saved.integer("output", -1, 0xFF)
            self._output = None if output < 0 else output
            parameter_of = saved.integer("parameter_of", -1, 0xFF)
            self._parameter_of = None if parameter_of < 0 else parameter_of
            self._last_was_command = saved.flag("last_was_command")
            saved.end()

    def _read_data(self) -> int:
        with self._lock:
            value, self._output = self._output, None
            return value or 0

    def _read_status(self) -> int:
        with self._lock:
            status = STATUS_UNLOCKED | STATUS_SYSTEM
            status |= STATUS_COMMAND if self._last_was_command else 0
            return status | (STATUS_OUTPUT_FULL if self._output is not None else 0)

    def _write_command(self, command: int) -> None:
        with self._lock:
            self._last_was_command = True
            self._parameter_of = command if command in _WITH_PARAMETER else None
            if command == READ_CONFIG:
                self._output = self._config
            elif command in _ANSWERS:
                self._output = _ANSWERS[command]
        if command >= PULSE and not command & OUTPUT_RESET:
            self._reset()

    def _write_data(self, value: int) -> None:
        with self._lock:
            self._last_was_command = False
            command, self._parameter_of = self._parameter_of, None
            if command == WRITE_CONFIG:
                self._config = value
            elif command == WRITE_KEYBOARD_OUTPUT:
                self._output = value
        if command == WRITE_OUTPUT_PORT and not value & OUTPUT_RESET:
            self._reset()


class _Port:
    """A port of one byte, made of two functions."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read()

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(value & 0xFF)
