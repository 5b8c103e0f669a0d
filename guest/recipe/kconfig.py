"""Kernel configuration fragments: reading them, and checking that Kconfig obeyed them.

Kconfig drops a line silently when a dependency is missing, and turns an unknown choice into that
choice's default (`CONFIG_HZ_20=y` without its entry becomes 250 Hz, which livelocks a host that
emulates kernel code). So a configuration is compared with its fragments before it is built.
"""

import re

_SET = re.compile(r"^(CONFIG_[A-Za-z0-9_]+)=(.+)$")
_UNSET = re.compile(r"^# (CONFIG_[A-Za-z0-9_]+) is not set$")

OFF = "n"


def parse(text: str) -> dict[str, str]:
    """The options of a fragment or a `.config`, in order; "is not set" reads as `OFF`.

    Raises ValueError for a line that is neither an option, a comment nor blank, and for an option
    that occurs twice: a fragment that contradicts itself is a mistake of its author.
    """
    options: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        found = _SET.match(line)
        unset = _UNSET.match(line)
        if found:
            name, value = found.group(1), found.group(2)
        elif unset:
            name, value = unset.group(1), OFF
        elif not line or line.startswith("#"):
            continue
        else:
            raise ValueError(f"line {number} is not a kernel option: {line!r}")
        if name in options:
            raise ValueError(f"line {number} sets {name} a second time")
        options[name] = value
    return options


def merge(fragments: list[str]) -> dict[str, str]:
    """The options of several fragments; a later one overrides an earlier one."""
    merged: dict[str, str] = {}
    for text in fragments:
        merged.update(parse(text))
    return merged


def render(options: dict[str, str]) -> str:
    """The options as text that Kconfig reads."""
    return "".join(
        f"# {name} is not set\n" if value == OFF else f"{name}={value}\n"
        for name, value in options.items()
    )


def refused(wanted: dict[str, str], config: str) -> list[str]:
    """The options that the finished `.config` does not hold as wanted, one sentence each.

    An option that `.config` does not mention is off: Kconfig leaves out what cannot be chosen.
    """
    actual = parse(config)
    return [
        f"{name} should be {value} but is {actual.get(name, OFF)}"
        for name, value in wanted.items()
        if actual.get(name, OFF) != value
    ]
