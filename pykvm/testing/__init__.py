"""Drivers, transports and engines for tests of devices and guests."""
