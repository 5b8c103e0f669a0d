"""Guest memory: the pure view that rings are parsed on, and the mapping behind it."""

from pykvm.memory.guest import GuestMemory
from pykvm.memory.ram import GuestAddressError, Ram, Region

__all__ = ["GuestAddressError", "GuestMemory", "Ram", "Region"]
