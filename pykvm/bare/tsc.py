"""The frequency of the host's TSC, which is the bare guest's clock."""

from functools import cache
from pathlib import Path


@cache
def host_tsc_khz() -> int:
    """The host's approximate TSC frequency, good enough for time-outs; 2 GHz if unknown."""
    try:
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        ):
            if line.startswith("cpu MHz"):
                return int(float(line.partition(":")[2]) * 1000)
    except (OSError, ValueError):
        pass
    return 2_000_000
