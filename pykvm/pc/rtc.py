"""CMOS RAM and real-time clock of the PC (Motorola MC146818 data sheet; ports 0x70 and 0x71).

The clock shows the host's time, in UTC. A guest that sets it changes only its own
view, not the host's clock. There are no alarms and no interrupts, so IRQ 8 is never
raised, and the update-in-progress bit is never set.
"""

import threading
import time
from collections.abc import Callable

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

CMOS_INDEX = 0x70
CMOS_PORTS = 2
CMOS_SIZE = 128

SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
CENTURY = 0x32
CLOCK_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY)
REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
A_UIP = 0x80
A_32KHZ_1024HZ = 0x26
B_24H, B_BINARY, B_SET = 0x02, 0x04, 0x80
D_VALID = 0x80
HOURS_PM = 0x80

_DAYS_BEFORE_1970 = 719_162
_YEAR_1, _YEAR_10000 = -_DAYS_BEFORE_1970 * 86400, 253_402_300_800
_KIB, _MIB = 1 << 10, 1 << 20
_BASE_MEMORY_KIB = 640


class Cmos:
    """The two ports: an index register, and the cell that it selects, of 128.

    ``low_memory`` and ``high_memory`` are the bytes of RAM below and above
    4 GiB. The guest finds them in the cells that PC firmware would fill. ``now``
    returns the time in seconds since 1970.
    """

    def __init__(
        self, low_memory: int, high_memory: int = 0, now: Callable[[], float] = time.time
    ) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._index = 0
        self._cells = bytearray(CMOS_SIZE)
        self._cells[REG_A] = A_32KHZ_1024HZ
        self._cells[REG_B] = B_24H
        self._cells[REG_D] = D_VALID
        self._shift = 0
        self._store_memory_size(low_memory, high_memory)

    def read(self, offset: int, size: int) -> int:
        """Port 0x71 has the selected cell; port 0x70 is write-only."""
        if offset != 1 or size != 1:
            return (1 << (8 * size)) - 1
        with self._lock:
            index = self._index
            if index in CLOCK_REGISTERS and not self._cells[REG_B] & B_SET:
                self._show_time()
            return self._cells[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a cell, or store to it. A 2-byte write to port 0x70 does both."""
        with self._lock:
            for index in range(offset, min(offset + size, CMOS_PORTS)):
                byte = value >> (8 * (index - offset)) & 0xFF
                if index == 0:
                    # Bit 7 masks the NMI, which nothing here raises.
                    self._index = byte & (CMOS_SIZE - 1)
                else:
                    self._write_cell(self._index, byte)

    def save(self) -> "Fields":
        """The cells, and by how many seconds the guest's clock differs from the host's."""
        with self._lock:
            return {"index": self._index, "cells": bytes(self._cells), "shift": self._shift}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave; the clock goes with the host's. SnapshotError."""
        with self._lock:
            self._index = saved.integer("index", 0, CMOS_SIZE - 1)
            self._cells[:] = saved.data("cells", CMOS_SIZE, CMOS_SIZE)
            shift = saved.integer("shift", _YEAR_1 - _YEAR_10000, _YEAR_10000 - _YEAR_1)
            # The host's clock may have moved so far that the guest's leaves the calendar.
            now = int(self._now())
            self._shift = max(_YEAR_1 - now, min(shift, _YEAR_10000 - 1 - now))
            saved.end()

    def _write_cell(self, index: int, value: int) -> None:
        if index == REG_A:
            self._cells[REG_A] = value & ~A_UIP
        elif index == REG_B:
            self._write_reg_b(value)
        elif index in CLOCK_REGISTERS:
            self._set_clock_cell(index, value)
        elif index not in (REG_C, REG_D):
            self._cells[index] = value

    def _write_reg_b(self, value: int) -> None:
        before = self._cells[REG_B]
        if value & B_SET and not before & B_SET:
            self._show_time()
        self._cells[REG_B] = value
        if before & B_SET and not value & B_SET:
            self._take_time()

    def _set_clock_cell(self, index: int, value: int) -> None:
        """Store to a cell of the clock. The new time holds at once, or when SET is cleared."""
        if self._cells[REG_B] & B_SET:
            self._cells[index] = value
            return
        self._show_time()
        self._cells[index] = value
        self._take_time()

    def _show_time(self) -> None:
        """Put the present time into the cells, in the format that register B selects."""
        moment = time.gmtime(self._now() + self._shift)
        cells, encode = self._cells, self._encode
        cells[SECONDS] = encode(moment.tm_sec)
        cells[MINUTES] = encode(moment.tm_min)
        if cells[REG_B] & B_24H:
            cells[HOURS] = encode(moment.tm_hour)
        else:
            cells[HOURS] = encode((moment.tm_hour + 11) % 12 + 1)
            cells[HOURS] |= HOURS_PM if moment.tm_hour >= 12 else 0
        cells[DAY_OF_WEEK] = encode((moment.tm_wday + 1) % 7 + 1)
        cells[DAY_OF_MONTH] = encode(moment.tm_mday)
        cells[MONTH] = encode(moment.tm_mon)
        cells[YEAR] = encode(moment.tm_year % 100)
        cells[CENTURY] = encode(moment.tm_year // 100)

    def _take_time(self) -> None:
        """Adopt the time in the cells; an impossible time changes nothing."""
        cells, decode = self._cells, self._decode
        hour = decode(cells[HOURS] & 0x7F)
        if not cells[REG_B] & B_24H:
            hour = hour % 12 + (12 if cells[HOURS] & HOURS_PM else 0)
        moment = _seconds(
            decode(cells[CENTURY]) * 100 + decode(cells[YEAR]),
            decode(cells[MONTH]),
            decode(cells[DAY_OF_MONTH]),
            hour,
            decode(cells[MINUTES]),
            decode(cells[SECONDS]),
        )
        if moment is not None:
            self._shift = moment - int(self._now())

    def _encode(self, number: int) -> int:
        if self._cells[REG_B] & B_BINARY:
            return number
        return number // 10 << 4 | number % 10

    def _decode(self, cell: int) -> int:
        if self._cells[REG_B] & B_BINARY:
            return cell
        return (cell >> 4) * 10 + (cell & 0x0F)

    def _store_memory_size(self, low: int, high: int) -> None:
        """Fill the cells of PC firmware: base and extended memory in KiB, the rest in 64 KiB."""
        extended = min(max(low - _MIB, 0) // _KIB, 0xFFFF)
        above_16_mib = min(max(low - 16 * _MIB, 0) // (64 * _KIB), 0xFFFF)
        above_4_gib = min(high // (64 * _KIB), 0xFFFFFF)
        cells = self._cells
        cells[0x15:0x17] = _BASE_MEMORY_KIB.to_bytes(2, "little")
        cells[0x17:0x19] = cells[0x30:0x32] = extended.to_bytes(2, "little")
        cells[0x34:0x36] = above_16_mib.to_bytes(2, "little")
        cells[0x5B:0x5E] = above_4_gib.to_bytes(3, "little")


def _seconds(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    """Seconds from 1970 to this moment in UTC, or None if there is no such moment.

    ``datetime`` and ``calendar`` can do this too, and take a millisecond to import.
    """
    if not (1 <= year <= 9999 and 1 <= month <= 12 and day >= 1):
        return None
    if hour > 23 or minute > 59 or second > 59:
        return None
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if day > lengths[month - 1]:
        return None
    years = year - 1
    leap_days = years // 4 - years // 100 + years // 400
    days = 365 * years + leap_days + sum(lengths[: month - 1]) + day - 1 - _DAYS_BEFORE_1970
    return ((days * 24 + hour) * 60 + minute) * 60 + second
