"""What tests of devices and guests are made of."""
