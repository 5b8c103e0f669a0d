"""A UART with everything around it recorded, and the part of Linux's driver that talks to it."""

from pykvm.pc.alarm import Alarm
from pykvm.pc.serial import (
    DLL,
    DLM,
    FCR_ENABLE,
    IER,
    IER_RDI,
    IER_RLSI,
    IER_THRI,
    IIR_FCR,
    IIR_NO_INT,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    LSR_TEMT,
    MCR,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT2,
    MCR_RTS,
    MSR,
    RBR_THR,
    Uart16550,
)


class FakeAlarm(Alarm):
    """An alarm that rings when the test says so."""

    def __init__(self, ring):
        self.ring = ring
        self.when = None

    def set(self, when):
        self.when = when

    def close(self):
        self.when = None


class Line:
    """A UART with everything around it recorded, on a clock that the test turns."""

    def __init__(self, **options):
        self.sent = bytearray()
        self.edges = []
        self.now = 100.0
        self.uart = Uart16550(
            self.edges.append,
            self.sent.extend,
            clock=lambda: self.now,
            alarm=self._make_alarm,
            **options,
        )

    def _make_alarm(self, ring):
        self.alarm = FakeAlarm(ring)
        return self.alarm

    @property
    def irq(self):
        return bool(self.edges) and self.edges[-1]

    def get(self, register):
        return self.uart.read(register, 1)

    def put(self, register, value):
        self.uart.write(register, 1, value)

    def pass_time(self, seconds):
        self.now += seconds
        if self.alarm.when is not None and self.alarm.when <= self.now:
            self.alarm.when = None
            self.alarm.ring()

    def read_available(self, limit=1 << 30):
        """The byte that a polling receiver gets."""
        got = bytearray()
        while len(got) < limit and self.get(LSR) & LSR_DR:
            got.append(self.get(RBR_THR))
        return bytes(got)


class Linux:
    """The register accesses of the 8250 driver (drivers/tty/serial/8250/8250_port.c)."""

    def __init__(self, line):
        self.line = line
        self.got = bytearray()

    def clear_fifos(self):
        for value in (FCR_ENABLE, FCR_ENABLE | 0x06, 0):
            self.line.put(IIR_FCR, value)

    def autoconfig(self):
        """The type of the port that was found, or None."""
        get, put = self.line.get, self.line.put
        ier = get(IER)
        put(IER, 0)
        none = get(IER) & 0x0F
        put(IER, 0x0F)
        every = get(IER) & 0x0F
        put(IER, ier)
        if none != 0 or every != 0x0F:
            return None
        mcr, lcr = get(MCR), get(LCR)
        put(MCR, MCR_LOOP | 0x0A)
        status = get(MSR) & 0xF0
        put(MCR, mcr)
        if status != 0x90:
            return None
        put(LCR, 0xBF)
        put(IIR_FCR, 0)  # EFR, on chips that have it
        put(LCR, 0)
        put(IIR_FCR, FCR_ENABLE)
        kind = ("8250", "unknown", "16550", "16550A")[get(IIR_FCR) >> 6]
        if kind == "16550A":
            kind = self.autoconfig_16550a()
        put(LCR, lcr)
        put(MCR, mcr)
        self.clear_fifos()
        get(RBR_THR)
        put(IER, 0)
        return kind

    def autoconfig_16550a(self):
        get, put = self.line.get, self.line.put
        put(LCR, 0x80)
        if get(2) == 0:
            return "16650"
        put(LCR, 0xBF)
        if get(2) == 0:
            return "16650V2"
        put(LCR, 0)
        before = get(MCR)
        put(LCR, 0xE0)
        first = get(2)
        put(LCR, 0)
        put(MCR, before ^ MCR_LOOP)
        put(LCR, 0xE0)
        second = get(2)
        put(LCR, 0)
        put(MCR, before)
        if not (first ^ before) & MCR_LOOP and (second ^ before) & MCR_LOOP:
            return "NS16550A"
        put(IIR_FCR, FCR_ENABLE | 0x20)
        plain = get(2) >> 5
        put(LCR, 0x80)
        put(IIR_FCR, FCR_ENABLE | 0x20)
        latched = get(2) >> 5
        put(IIR_FCR, FCR_ENABLE)
        put(LCR, 0)
        if (plain, latched) == (6, 7):
            return "16750"
        put(IER, 0x40)
        if get(IER) & 0x40:
            return "XScale"
        put(IER, 0)
        return "16550A" if self.size_fifo() == 16 else "U6_16550A"

    def size_fifo(self):
        get, put = self.line.get, self.line.put
        mcr = get(MCR)
        put(IIR_FCR, FCR_ENABLE | 0x06)
        put(MCR, MCR_LOOP)
        for value in range(256):
            put(RBR_THR, value)
        size = 0
        while get(LSR) & LSR_DR:
            assert get(RBR_THR) == size
            size += 1
        put(MCR, mcr)
        return size

    def startup(self):
        """Open the port; return the bugs that the driver detects."""
        get, put = self.line.get, self.line.put
        self.clear_fifos()
        for register in (LSR, RBR_THR, IIR_FCR, MSR):
            get(register)
        put(LCR, 3)
        put(MCR, MCR_OUT2)
        bugs = set()
        put(IER, IER_THRI)
        first = get(IIR_FCR)
        put(IER, 0)
        put(IER, IER_THRI)
        second = get(IIR_FCR)
        put(IER, 0)
        if not first & IIR_NO_INT and second & IIR_NO_INT:
            bugs.add("THRE")
        put(IER, IER_THRI)
        if get(LSR) & LSR_TEMT and get(IIR_FCR) & IIR_NO_INT:
            bugs.add("TXEN")
        put(IER, 0)
        for register in (LSR, RBR_THR, IIR_FCR, MSR):
            get(register)
        put(LCR, LCR_DLAB | 3)
        put(DLL, 1)
        put(DLM, 0)
        put(LCR, 3)
        put(IIR_FCR, FCR_ENABLE | 0x80)
        put(IER, IER_RDI | IER_RLSI)
        put(MCR, MCR_OUT2 | MCR_DTR | MCR_RTS)
        return bugs

    def interrupt(self):
        """serial8250_interrupt: loop until the port is quiet; return the number of rounds."""
        rounds = 0
        while not self.line.get(IIR_FCR) & IIR_NO_INT:
            rounds += 1
            assert rounds < 512, "the handler never comes to an end"
            self.got += self.line.read_available(256)
            self.line.get(MSR)
        return rounds
