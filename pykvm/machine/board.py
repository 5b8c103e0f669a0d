"""The machine's fixed devices: two UARTs, clock, reset ports, exit port, pvpanic, PCI bus."""

from collections.abc import Callable

from pykvm.bus import Bus
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.outcome import ConsoleWatch, Outcome, judge
from pykvm.pc.bell import BELL_PLACE, BELL_SIZE, Bell
from pykvm.pc.exit_port import EXIT_PORT, EXIT_PORTS, ExitPort
from pykvm.pc.i8042 import I8042
from pykvm.pc.pvpanic import PVPANIC_PANICKED, PVPANIC_PORT, PVPANIC_PORTS, Pvpanic
from pykvm.pc.reset_ports import PORT_A, PortA, ResetControl
from pykvm.pc.rtc import CMOS_INDEX, CMOS_PORTS, Cmos
from pykvm.pc.serial import (
    COM1,
    COM1_IRQ,
    COM2,
    COM2_IRQ,
    MCR_OUT1,
    MCR_RTS,
    PORTS,
    Uart16550,
)
from pykvm.pci.host import CONFIG_PORT, CONFIG_PORTS, PciHost
from pykvm.pci.pvpanic import PvPanicPci
from pykvm.pci.services import PciServices

if TYPE_CHECKING:
    from pykvm.snapshot.fields import Fields, Saved, Stateful

Finish = Callable[[Outcome], None]
SetLine = Callable[[int, bool], None]


class Board:
    """Owns the fixed devices, and the two buses (``ports``, ``mmio``) for vCPU exits.

    ``console`` is the first UART, ``channel`` the second, and ``pci`` the bus
    with the disks.
    """

    def __init__(
        self,
        services: PciServices,
        set_line: SetLine,
        memory: tuple[int, int],
        *,
        console: Callable[[bytes], None],
        channel: Callable[[bytes], None],
        finish: Finish,
        bell: Callable[[], None] | None = None,
        console_waits: bool = False,
    ) -> None:
        """Build all devices.

        ``set_line(gsi, level)`` drives an interrupt line. ``memory`` has the
        bytes of RAM below and above 4 GiB. ``console`` and ``channel`` get the
        output of the two UARTs. The vCPU's thread in which the guest ends the
        run calls ``finish``. It calls ``bell`` when the guest rings; None: there
        is no bell. ``console_waits``: the console holds input back until a
        program in the guest has set its terminal up, and sets OUT1.
        """
        self.ports = Bus()
        self.mmio = Bus()
        self._finish = finish
        self._exit_status: int | None = None
        self._panicked = False
        self._watch = ConsoleWatch()
        self._console_sink = console
        self.console = Uart16550(
            lambda level: set_line(COM1_IRQ, level),
            self._print,
            ready=MCR_RTS | (MCR_OUT1 if console_waits else 0),
        )
        self.channel = Uart16550(lambda level: set_line(COM2_IRQ, level), channel)
        self._reset_control = ResetControl(lambda: self._reset("port 0xcf9"))
        self.pci = PciHost(
            self.mmio, lambda value: self._reset_control.write(0, 1, value), decode_start=memory[0]
        )
        add = self.ports.add
        add(COM1, PORTS, self.console)
        add(COM2, PORTS, self.channel)
        self._cmos = Cmos(*memory)
        self._keyboard = I8042(lambda: self._reset("the i8042"))
        add(CMOS_INDEX, CMOS_PORTS, self._cmos)
        add(PORT_A, 1, PortA(lambda: self._reset("port 0x92")))
        add(CONFIG_PORT, CONFIG_PORTS, self.pci)
        add(EXIT_PORT, EXIT_PORTS, ExitPort(self._power_off))
        pvpanic = Pvpanic(self._panic)
        add(PVPANIC_PORT, PVPANIC_PORTS, pvpanic)
        if bell is not None:
            self.mmio.add(BELL_PLACE, BELL_SIZE, Bell(bell))
        self._keyboard.attach(self.ports)
        self.pci.add(PvPanicPci(pvpanic))

    def close(self) -> None:
        """Close every device, disks included. The vCPUs have ended."""
        self.pci.close()
        self.console.close()
        self.channel.close()

    def save(self) -> "Fields":
        """The state of every device but the disks. No vCPU runs meanwhile."""
        return {name: device.save() for name, device in self._stateful().items()}

    def load(self, saved: "Saved") -> None:
        """Take over what :meth:`save` gave, and forget how the run ended. SnapshotError."""
        self._exit_status = None
        self._panicked = False
        self._watch = ConsoleWatch()
        for name, device in self._stateful().items():
            part = saved.part(name)
            # Most devices have not changed when a machine is put back after a short while. A disk
            # has to look at its rings, and repeat its interrupts, even then.
            if device is self.pci or not part.is_same(device.save()):
                device.load(part)
        saved.end()

    def _stateful(self) -> "dict[str, Stateful]":
        return {
            "console": self.console,
            "channel": self.channel,
            "cmos": self._cmos,
            "keyboard": self._keyboard,
            "reset_control": self._reset_control,
            "pci": self.pci,
        }

    def judge(self, event: Outcome) -> Outcome:
        """The outcome of a run that ``event`` ended: see :func:`pykvm.machine.outcome.judge`."""
        return judge(
            event,
            exit_status=self._exit_status,
            panicked=self._panicked,
            console_line=self._watch.panic_line,
        )

    def _print(self, data: bytes) -> None:
        self._watch.feed(data)
        self._console_sink(data)

    def _power_off(self, status: int) -> None:
        self._exit_status = status
        self._finish(Outcome.power_off(status))

    def _reset(self, source: str) -> None:
        self._finish(Outcome.reset(source))

    def _panic(self, events: int) -> None:
        if events & PVPANIC_PANICKED:
            self._panicked = True
            self._finish(Outcome.panic())
