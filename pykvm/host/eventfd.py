"""Facts about eventfds that reading them would change."""


def count_of(eventfd: int) -> int:
    """The counter of ``eventfd``, which keeps it. OSError."""
    with open(f"/proc/self/fdinfo/{eventfd}", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "eventfd-count":
                return int(value, 16)
    return 0
