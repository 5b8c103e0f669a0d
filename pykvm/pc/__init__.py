"""The PC around the processor: serial ports, clock, keyboard controller, small I/O ports."""
