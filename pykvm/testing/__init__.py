"""What tests of devices and guests are made of: drivers, transports and engines for tests."""
