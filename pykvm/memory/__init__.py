"""Guest memory: its mapping, and the pure view through which devices parse it."""

from pykvm.memory.guest import GuestMemory
from pykvm.memory.ram import GuestAddressError, Ram, Region

__all__ = ["GuestAddressError", "GuestMemory", "Ram", "Region"]
