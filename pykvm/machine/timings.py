"""The times of a run's steps, as named marks since the process began."""

import os
import time


class Timings:
    """Marks and their times, in ``marks``; a name keeps the time of its first mark.

    Times are seconds since the start of the process, which the kernel records
    to 10 ms. So they include the start of the interpreter.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self._zero = _process_start()

    def mark(self, name: str) -> None:
        """Note that the run has reached ``name`` now. Cheap; for any thread."""
        if name not in self.marks:
            self.marks[name] = time.clock_gettime(time.CLOCK_BOOTTIME) - self._zero

    def table(self) -> str:
        """A line for each mark: seconds since the start, and since the previous mark."""
        lines = ["seconds since the process began, and of each step:"]
        before = 0.0
        for name, at in sorted(self.marks.items(), key=lambda item: item[1]):
            lines.append(f"  {at:8.3f}  {at - before:+8.3f}  {name}")
            before = at
        return "\n".join(lines)


def _process_start() -> float:
    """The start of this process on CLOCK_BOOTTIME (proc(5), field 22 of stat)."""
    with open("/proc/self/stat", "rb") as stat:
        # The second field, the command's name, may hold spaces and brackets.
        fields = stat.read().rpartition(b")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
