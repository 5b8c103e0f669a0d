"""The MP configuration table: CPUs, the I/O APIC, and where every interrupt goes.

It does for a kernel without ACPI what the MADT and the DSDT would. Source:
Intel MultiProcessor Specification 1.4, chapter 4.

KVM's irqchip routes GSI n to pin n of its I/O APIC, including GSI 0, on which
its PIT sits (``default_routing`` in arch/x86/kvm; nothing like QEMU's "IRQ 0
is pin 2" unless a VMM sets such routes). So every entry here names the pin
that equals its interrupt's number.

INTA# of every slot of PCI bus 0 is described, of the empty ones too. Functions
have no other pin, and Linux compares each entry with all before it, which is
time one can see on a host that emulates guest kernel code.
"""

import struct

from pykvm.x86 import layout

PCI_SLOTS = 32
MAX_CPUS = 254
"""APIC ids are 8 bits wide; one is left for the I/O APIC, and 255 means everybody."""
LOCAL_APIC = 0xFEE00000
IO_APIC = 0xFEC00000

_PROCESSOR, _BUS, _IO_APIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_INT, _NMI, _SMI, _EXTINT = range(4)
_PCI_BUS, _ISA_BUS = 0, 1
"""Bus ids: a PCI bus's id must be its bus number."""
_ENABLED, _BOOT_CPU = 1, 2
_APIC_VERSION, _IO_APIC_VERSION = 0x14, 0x11
_CPU_SIGNATURE = 0x600
_CPU_FEATURES = 0x201
"""FPU and APIC; nobody reads more where there is CPUID."""
_CONFORMS = 0
_LEVEL_ACTIVE_LOW = 0xF
_ISA_CASCADE = 2
"""The second 8259's input to the first: no device's interrupt."""
_ALL_APICS = 0xFF


def pci_gsi(device: int, pin: int) -> int:
    """The GSI, and I/O APIC pin, of INTx ``pin`` (1 = INTA#) of ``device`` on PCI bus 0."""
    return 16 + ((device + pin - 1) & 7)


def floating_pointer(table: int) -> bytes:
    """The 16-byte MP floating pointer structure for a table at address ``table`` (§4.1)."""
    return _checked(struct.pack("<4sIBBBBI", b"_MP_", table, 1, 4, 0, 0, 0), 10)


def configuration(cpus: int) -> bytes:
    """The configuration table for ``cpus`` CPUs (APIC ids 0 up), the first the boot CPU."""
    assert 1 <= cpus <= MAX_CPUS
    io_apic = cpus
    entries = [_processor(apic_id) for apic_id in range(cpus)]
    entries.append(struct.pack("<BB6s", _BUS, _PCI_BUS, b"PCI   "))
    entries.append(struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "))
    entries.append(struct.pack("<BBBBI", _IO_APIC, io_apic, _IO_APIC_VERSION, 1, IO_APIC))
    for irq in range(16):
        if irq != _ISA_CASCADE:
            entries.append(_io_interrupt(_CONFORMS, _ISA_BUS, irq, io_apic, irq))
    for device in range(PCI_SLOTS):
        source = device << 2  # and the pin, INTA# being 0 (appendix D.3)
        entries.append(
            _io_interrupt(_LEVEL_ACTIVE_LOW, _PCI_BUS, source, io_apic, pci_gsi(device, 1))
        )
    for kind, input_pin in ((_EXTINT, 0), (_NMI, 1)):
        entries.append(
            struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, kind, 0, _ISA_BUS, 0, _ALL_APICS, input_pin)
        )
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHH",
        b"PCMP",
        44 + len(body),
        4,
        0,
        b"PYKVM   ",
        b"PYKVM       ",
        0,
        0,
        len(entries),
        LOCAL_APIC,
        0,
        0,
    )
    table = _checked(header + body, 7)
    assert len(table) <= layout.MP_TABLE_SPACE
    return table


def _processor(apic_id: int) -> bytes:
    flags = _ENABLED | (_BOOT_CPU if apic_id == 0 else 0)
    return struct.pack(
        "<BBBBIIQ", _PROCESSOR, apic_id, _APIC_VERSION, flags, _CPU_SIGNATURE, _CPU_FEATURES, 0
    )


def _io_interrupt(flags: int, bus: int, source: int, io_apic: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", _IO_INTERRUPT, _INT, flags, bus, source, io_apic, pin)


def _checked(structure: bytes, place: int) -> bytes:
    """``structure`` with its byte at ``place`` set so that all bytes add up to 0 modulo 256."""
    return structure[:place] + bytes([-sum(structure) & 0xFF]) + structure[place + 1 :]
