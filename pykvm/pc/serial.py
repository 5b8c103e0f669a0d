"""A 16550A serial port (National Semiconductor PC16550D data sheet, 1995).

Transmission takes no time: the transmitter is always empty. The vCPU thread that
sends a byte hands it to ``sink`` after releasing the lock, so a slow sink slows down
only that vCPU.

Bytes from the host wait in a backlog (pykvm/pc/serial_input.py) and move to the
guest's FIFO under exact hardware flow control: only while the guest asserts RTS
(MCR bit 1), and never in loopback mode. Linux asserts RTS when it opens the port.
With CRTSCTS (``console=ttyS0,115200n8r``) it drops RTS when its buffers fill up. Three
rules take every byte to its reader:

- A guest that never wrote MCR, as a simple polling loop, receives as if RTS
  were asserted. Linux writes MCR while it detects the port, before it reads
  any data.
- Bytes move when the guest reads LSR or IIR, or at any time while the
  received-data interrupt is enabled. A blind read of RBR after a FIFO reset,
  which Linux does to clear a port that it does not use yet, finds nothing.
- A FIFO reset loses no byte from the host.

The modem status shows a peer that is always ready: CTS, DSR and DCD. The interrupt
does not depend on OUT2, so guests need not know this rule of PCs.
"""

import threading
import time
from collections.abc import Callable

from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.pc.alarm import Alarm
from pykvm.pc.serial_input import FIFO_SIZE, ReceiveFifo

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved

COM1 = 0x3F8
COM1_IRQ = 4
COM2 = 0x2F8
COM2_IRQ = 3
PORTS = 8
"""The number of I/O ports of one UART."""

BACKLOG_LIMIT = 64 * 1024
"""When more bytes wait, :meth:`Uart16550.feed` asks its caller to pause."""
BACKLOG_RESUME = BACKLOG_LIMIT // 2

# Registers, by offset. Offsets 0 and 1 are the divisor while LCR.DLAB is set.
RBR_THR = DLL = 0
IER = DLM = 1
IIR_FCR, LCR, MCR, LSR, MSR, SCR = 2, 3, 4, 5, 6, 7

IER_RDI, IER_THRI, IER_RLSI, IER_MSI = 0x01, 0x02, 0x04, 0x08
IIR_NO_INT, IIR_RLSI, IIR_CTI, IIR_RDI, IIR_THRI, IIR_MSI = 0x01, 0x06, 0x0C, 0x04, 0x02, 0x00
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RCVR = 0x01, 0x02
FCR_TRIGGERS = (1, 4, 8, 14)
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_TERI, MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x04, 0x10, 0x20, 0x40, 0x80


class Uart16550:
    """One serial port, 8 I/O ports wide. Any thread may call any method.

    ``set_irq(level)`` drives the interrupt line; it is called at each change,
    with the port's lock held, so it must not call back. ``sink(data)`` takes
    bytes from the guest and may block. Input flows only while all MCR bits in
    ``ready`` are set. With MCR_RTS | MCR_OUT1, a guest program can set up its
    terminal first and then set OUT1 (TIOCM_OUT1) to get input.
    """

    on_room: Callable[[], None] | None = None
    """Called, without the lock, when there is room again after :meth:`feed` returned False."""
    on_failure: Callable[[BaseException], None] | None = None
    """Called with an exception of the pacing thread, a bug. None: threading.excepthook gets it."""

    def __init__(
        self,
        set_irq: Callable[[bool], None],
        sink: Callable[[bytes], None],
        *,
        ready: int = MCR_RTS,
        clock: Callable[[], float] = time.monotonic,
        alarm: Callable[[Callable[[], None]], Alarm] = Alarm,
    ) -> None:
        self._set_irq = set_irq
        self._sink = sink
        self._ready = ready
        self._clock = clock
        self._alarm = alarm(self._resume)
        self._lock = threading.Lock()
        self._receive = ReceiveFifo()
        self._full = False
        self._level = False
        self._ier = 0
        self._thre_pending = False
        self._fcr = 0
        self._trigger = 1
        self._lcr = 0
        self._divisor = 12
        self._mcr = 0
        self._mcr_written = False
        self._overrun = 0
        self._msr_delta = 0
        self._scr = 0

    def feed(self, data: bytes) -> bool:
        """Queue all of ``data`` for the guest.

        False: more than 64 KiB wait, so feed no more until ``on_room`` is called.
        """
        with self._lock:
            self._receive.put(data)
            self._fill(looking=False)
            self._update_irq()
            if self._receive.waiting > BACKLOG_LIMIT:
                self._full = True
            return not self._full

    @property
    def waiting(self) -> int:
        """The number of bytes that were fed and have not reached the guest's FIFO."""
        return self._receive.waiting

    def close(self) -> None:
        """End the pacing thread. The port can still be used, but its input may stall."""
        self._alarm.close()

    def read(self, offset: int, size: int) -> int:
        """Read registers; a wider access is one byte for each, as on an 8-bit bus."""
        value = 0
        with self._lock:
            for index in range(size):
                value |= self._read_register(offset + index) << (8 * index)
            self._update_irq()
            room = self._has_room_again()
        if room and self.on_room is not None:
            self.on_room()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write registers; a wider access is one byte for each, as on an 8-bit bus."""
        sent = b""
        with self._lock:
            for index in range(size):
                sent += self._write_register(offset + index, value >> (8 * index) & 0xFF)
            self._update_irq()
            room = self._has_room_again()
        if sent:
            self._sink(sent)
        if room and self.on_room is not None:
            self.on_room()

    def save(self) -> "Fields":
        """The registers, and the bytes that wait for the guest. No vCPU runs. SnapshotError."""
        with self._lock:
            return {
                "ier": self._ier,
                "fcr": self._fcr,
                "lcr": self._lcr,
                "mcr": self._mcr,
                "mcr_written": self._mcr_written,
                "divisor": self._divisor,
                "scratch": self._scr,
                "overrun": bool(self._overrun),
                "modem_changes": self._msr_delta,
                "transmitter_empty_pending": self._thre_pending,
                "receive": self._receive.save(),
            }

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave, end its pause, and drive the line. SnapshotError."""
        with self._lock:
            self._ier = saved.integer("ier", 0, 0x0F)
            self._fcr = saved.integer("fcr", 0, 0xFF)
            self._lcr = saved.integer("lcr", 0, 0xFF)
            self._mcr = saved.integer("mcr", 0, 0x1F)
            self._mcr_written = saved.flag("mcr_written")
            self._divisor = saved.integer("divisor", 0, 0xFFFF)
            self._scr = saved.integer("scratch", 0, 0xFF)
            self._overrun = LSR_OE if saved.flag("overrun") else 0
            self._msr_delta = saved.integer("modem_changes", 0, 0x0F)
            self._thre_pending = saved.flag("transmitter_empty_pending")
            self._trigger = FCR_TRIGGERS[self._fcr >> 6]
            self._receive.capacity = FIFO_SIZE if self._fcr else 1
            if self._fcr and not self._fcr & FCR_ENABLE:
                saved.refuse("fcr has bits set while FIFOs are disabled")
            self._receive.load(saved.part("receive"))
            saved.end()
            self._fill(looking=False)
            self._full = self._receive.waiting > BACKLOG_LIMIT
            # The chips remember the level at which the line is driven, whatever is loaded.
            self._update_irq()

    # The rest runs with the lock held.

    def _read_register(self, offset: int) -> int:
        if offset <= DLM and self._lcr & LCR_DLAB:
            return self._divisor >> (8 * offset) & 0xFF
        if offset == LSR:
            return self._read_lsr()
        if offset == RBR_THR:
            return self._read_rbr()
        if offset == IIR_FCR:
            return self._read_iir()
        if offset == MSR:
            delta, self._msr_delta = self._msr_delta, 0
            return self._modem_status() | delta
        plain = {IER: self._ier, LCR: self._lcr, MCR: self._mcr, SCR: self._scr}
        return plain.get(offset, 0xFF)

    def _read_rbr(self) -> int:
        byte = self._receive.pop(self._clock())
        self._fill(looking=False)
        return byte

    def _read_iir(self) -> int:
        self._fill(looking=True)
        cause = self._cause()
        if cause == IIR_THRI:
            self._thre_pending = False
        return cause | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE else 0)

    def _read_lsr(self) -> int:
        self._fill(looking=True)
        overrun, self._overrun = self._overrun, 0
        return LSR_THRE | LSR_TEMT | overrun | (LSR_DR if self._receive else 0)

    def _write_register(self, offset: int, value: int) -> bytes:
        """Store one byte; return the bytes that go out on the line."""
        if offset <= DLM and self._lcr & LCR_DLAB:
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif offset == RBR_THR:
            return self._transmit(value)
        elif offset == IER:
            self._write_ier(value)
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._write_mcr(value)
        elif offset == SCR:
            self._scr = value
        return b""

    def _transmit(self, byte: int) -> bytes:
        self._thre_pending = True
        if not self._mcr & MCR_LOOP:
            return bytes((byte,))
        if not self._receive.loop(byte):
            self._overrun = LSR_OE
        return b""

    def _write_ier(self, value: int) -> None:
        # Enabling the interrupt while the transmitter is empty raises it, even if
        # a read of IIR had cleared it before: Linux tests for this.
        if value & ~self._ier & IER_THRI:
            self._thre_pending = True
        self._ier = value & 0x0F
        self._fill(looking=False)

    def _write_fcr(self, value: int) -> None:
        if not value & FCR_ENABLE:
            value = 0
        if value & FCR_CLEAR_RCVR or (value ^ self._fcr) & FCR_ENABLE:
            self._receive.reset()
        self._fcr = value
        self._receive.capacity = FIFO_SIZE if value else 1
        self._trigger = FCR_TRIGGERS[value >> 6]
        self._fill(looking=False)

    def _write_mcr(self, value: int) -> None:
        before = self._modem_status()
        self._mcr = value & 0x1F
        self._mcr_written = True
        after = self._modem_status()
        changed = before ^ after
        # Only the trailing edge of the ring indicator is reported.
        self._msr_delta |= changed >> 4 & ~MSR_TERI
        if changed & before & MSR_RI:
            self._msr_delta |= MSR_TERI
        self._fill(looking=False)

    def _modem_status(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD
        status = MSR_CTS if self._mcr & MCR_RTS else 0
        status |= MSR_DSR if self._mcr & MCR_DTR else 0
        status |= MSR_RI if self._mcr & MCR_OUT1 else 0
        return status | (MSR_DCD if self._mcr & MCR_OUT2 else 0)

    def _cause(self) -> int:
        """The pending interrupt of highest priority, as IIR names it."""
        if self._ier & IER_RLSI and self._overrun:
            return IIR_RLSI
        if self._ier & IER_RDI and self._receive:
            # The timeout of four characters has always passed on a line this fast.
            return IIR_RDI if len(self._receive) >= self._trigger else IIR_CTI
        if self._ier & IER_THRI and self._thre_pending:
            return IIR_THRI
        if self._ier & IER_MSI and self._msr_delta:
            return IIR_MSI
        return IIR_NO_INT

    def _update_irq(self) -> None:
        level = self._cause() != IIR_NO_INT
        if level != self._level:
            self._level = level
            self._set_irq(level)

    def _fill(self, looking: bool) -> None:
        """Move bytes to the FIFO if the rules at the top of this file allow it.

        ``looking``: the guest reads LSR or IIR.
        """
        interrupts = bool(self._ier & IER_RDI)
        if not self._receive.waiting or not (looking or interrupts):
            return
        ready = self._mcr & self._ready == self._ready or not self._mcr_written
        if not ready or self._mcr & MCR_LOOP:
            return
        again = self._receive.fill(self._clock(), paced=interrupts)
        if again is not None:
            self._alarm.set(again)

    def _has_room_again(self) -> bool:
        room = self._full and self._receive.waiting <= BACKLOG_RESUME
        if room:
            self._full = False
        return room

    def _resume(self) -> None:
        """Continue after a pause. Runs on the alarm's thread."""
        try:
            with self._lock:
                self._fill(looking=False)
                self._update_irq()
                room = self._has_room_again()
            if room and self.on_room is not None:
                self.on_room()
        except BaseException as bug:
            if self.on_failure is None:
                raise
            self.on_failure(bug)
