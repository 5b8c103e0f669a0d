"""The MP configuration table: CPUs, the I/O APIC, and the route of each interrupt.

A kernel without ACPI reads it instead of the MADT and the DSDT. Source: Intel
MultiProcessor Specification 1.4, chapter 4.

KVM's irqchip routes GSI n to pin n of its I/O APIC. That includes GSI 0, which the PIT
uses (``default_routing`` in arch/x86/kvm; QEMU sets different routes, with IRQ 0 on
pin 2). So the pin in each entry here equals the interrupt's number.

The table has INTA# of every slot of PCI bus 0, also of empty slots. It leaves out the
other pins, because no function has them: Linux compares each entry with all earlier
ones, which takes noticeable time on a host that emulates guest kernel code.
"""

import struct

from pykvm.x86 import layout

PCI_SLOTS = 32
MAX_CPUS = 254
"""APIC ids are 8 bits wide. The I/O APIC has one, and 255 means all APICs."""
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
"""FPU and APIC. Guests read further features from CPUID."""
_CONFORMS = 0
_LEVEL_ACTIVE_LOW = 0xF
_ISA_CASCADE = 2
"""The second 8259's input to the first, so not the interrupt of a device."""
_ALL_APICS = 0xFF


def pci_gsi(device: int, pin: int) -> int:
    """The GSI, and I/O APIC pin, of INTx ``pin`` (1 = INTA#) of ``device`` on PCI bus 0."""
    return 16 + ((device + pin - 1) & 7)


def floating_pointer(table: int) -> bytes:
    """The 16-byte MP floating pointer structure for a table at address ``table`` (§4.1)."""
    return _checked(struct.pack("<4sIBBBBI", b"_MP_", table, 1, 4, 0, 0, 0), 10)


def configuration(cpus: int) -> bytes:
    """The configuration table for ``cpus`` CPUs with APIC ids from 0, the boot CPU, on."""
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
        source = device << 2  # plus the pin, which is 0 for INTA# (appendix D.3)
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
