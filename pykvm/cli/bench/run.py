"""``pykvm bench``: chooses among its commands."""

from collections.abc import Sequence
from importlib import import_module

from pykvm.cli.say import emit
from pykvm.errors import UsageError
from pykvm.suggest import did_you_mean

COMMANDS = {
    "disk": "measure a disk with the bare-metal guest, also under QEMU and fio (the default)",
    "fio": "run fio in a Linux guest, and show the device's part of each latency",
    "compare": "run one load under several configurations of a disk, such as merging policies",
}
"""Each command and its line of help. ``pykvm.cli.bench.NAME.run`` has its function."""


def run_bench(arguments: Sequence[str]) -> int:
    """Run ``pykvm bench`` and return the exit status."""
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        emit(_usage())
        return 0
    if first in COMMANDS:
        return _run(first, arguments[1:])
    if first and not first.startswith("-"):
        hint = did_you_mean(first, COMMANDS, "see 'pykvm bench --help'")
        raise UsageError(f"there is no command 'bench {first}'", hint)
    return _run("disk", arguments)


def _run(name: str, arguments: Sequence[str]) -> int:
    module = import_module(f"pykvm.cli.bench.{name}.run")
    status: int = getattr(module, f"run_{name}")(arguments)
    return status


def _usage() -> str:
    commands = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    return (
        "usage: pykvm bench [COMMAND] …\n\n"
        "Measure disks.\n\n"
        f"commands:\n{commands}\n\n"
        "'pykvm bench COMMAND --help' lists a command's options.\n"
    )
