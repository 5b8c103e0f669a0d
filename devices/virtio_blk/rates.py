"""How fast a disk may be: what a user can limit, under QEMU's names. Pure."""

from typing import Final

from pykvm.errors import UsageError
from pykvm.forms import adapt, size, whole
from pykvm.lean.records import keyword_record

RATE: Final = range(10**15 + 1)
"""Requests or bytes in a second; 0 for no limit."""


@keyword_record
class RateLimits:
    """Limits of requests (``iops``) and of bytes (``bps``) per second; 0: none. UsageError.

    For reads (``rd``), for writes (``wr``) and for both together; all that are
    set hold. Each has a ``max``: how many may go at once after a rest, by
    default a tenth of a second's. A request of more than ``iops_size`` bytes
    counts as several, one for each that many bytes; 0: as one.
    """

    iops: int = 0
    iops_rd: int = 0
    iops_wr: int = 0
    bps: int = 0
    bps_rd: int = 0
    bps_wr: int = 0
    iops_max: int = 0
    iops_rd_max: int = 0
    iops_wr_max: int = 0
    bps_max: int = 0
    bps_rd_max: int = 0
    bps_wr_max: int = 0
    iops_size: int = 0

    def __post_init__(self) -> None:
        adapt(self, _FORMS)
        values = vars(self)
        for name, value in values.items():
            key = name.replace("_", "-")
            if value not in RATE:
                raise UsageError(f"{key} cannot be {value}", f"use {RATE[0]} to {RATE[-1]}")
            limit = name.removesuffix("_max")
            if limit != name and value and not values[limit]:
                plain = limit.replace("_", "-")
                raise UsageError(f"{key} is of no use without {plain}", f"give {plain} too")
        if self.iops_size and not (self.iops or self.iops_rd or self.iops_wr):
            raise UsageError("iops-size is of no use without iops", "give iops too")

    def __bool__(self) -> bool:
        """Is anything limited?"""
        return any(vars(self).values())


RATES: Final = tuple(RateLimits.__annotations__)
"""The names of all fields."""
_FORMS: Final = {name: size if name[0] == "b" else whole for name in RATES}
NO_LIMITS: Final = RateLimits()
PLAIN_RATES: Final = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
