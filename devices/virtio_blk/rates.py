"""The rate limits of a disk, under QEMU's names. Pure."""

from typing import Final

from pykvm.errors import UsageError
from pykvm.forms import adapt, size, whole
from pykvm.lean.records import keyword_record

RATE: Final = range(10**15 + 1)
"""Requests or bytes per second; 0: no limit."""


@keyword_record
class RateLimits:
    """Limits of requests and bytes per second, up to 10^15; 0: no limit. All apply at once.

    A number of bytes may be a string such as ``"10M"``. UsageError for a value out of range, and
    for one without effect, such as ``iops_max`` without ``iops``.
    """

    iops: int = 0
    """Requests per second."""
    iops_rd: int = 0
    """Reads per second."""
    iops_wr: int = 0
    """Writes per second."""
    bps: int = 0
    """Bytes per second."""
    bps_rd: int = 0
    """Bytes read per second."""
    bps_wr: int = 0
    """Bytes written per second."""
    iops_max: int = 0
    """Requests that may start at once after a pause; 0: a tenth of ``iops``. The other ``_max``
    fields work in the same way."""
    iops_rd_max: int = 0
    """Reads at once."""
    iops_wr_max: int = 0
    """Writes at once."""
    bps_max: int = 0
    """Bytes at once."""
    bps_rd_max: int = 0
    """Bytes read at once."""
    bps_wr_max: int = 0
    """Bytes written at once."""
    iops_size: int = 0
    """A request of more bytes than this counts as several in ``iops``, one for each part of this
    length; 0: every request counts once."""

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
                raise UsageError(f"{key} has no effect without {plain}", f"give {plain} too")
        if self.iops_size and not (self.iops or self.iops_rd or self.iops_wr):
            raise UsageError("iops-size has no effect without iops", "give iops too")

    def __bool__(self) -> bool:
        """True if anything is limited."""
        return any(vars(self).values())


RATES: Final = tuple(RateLimits.__annotations__)
"""The names of all fields."""
_FORMS: Final = {name: size if name[0] == "b" else whole for name in RATES}
NO_LIMITS: Final = RateLimits()
PLAIN_RATES: Final = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
