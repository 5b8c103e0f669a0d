"""Finds the kernel, initrd and command line of a configuration on this host."""

from collections.abc import Sequence

from pykvm.errors import UsageError
from pykvm.lean.records import record
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.config import DEFAULT_MEMORY, ConsoleMode, MachineConfig
from pykvm.machine.mailbox import MAILBOX_SIZE, mailbox_option
from pykvm.memory.guest import HOLE_START

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.machine.bundle import Bundle

LEAST_WITH_MAILBOX = 8 << 20
"""Bytes of memory. A smaller guest needs it all; its agent speaks over the UART."""
NATIVE, EMULATED = "native", "emulated"
"""The flavours of bundles (pykvm/machine/bundle.py)."""
LINUX = "linux64"

LINUX_DEFAULTS = "console=ttyS0,115200n8r reboot=k panic=-1"
"""Options for a Linux kernel without a bundle: print on the console (r: with RTS/CTS), reset
through the i8042, and reset at once after a panic."""
FOREIGN_KERNEL = (
    "KVM on this host emulates kernel code, instruction by instruction: a kernel that is not built "
    "for that, such as a distribution's, may print nothing for minutes; the bundled guest is built "
    "for it ('pykvm boot guest')"
)


@record
class ResolvedGuest:
    """A guest to load. ``memory`` is in bytes; ``notice`` is a sentence for the user, or "".

    ``is_bundle``: it has a bundle's options. ``own_kernel``: the user chose the kernel. The last
    ``reserved`` bytes of the RAM below 4 GiB are the agent's mailbox.
    """

    kernel: "Path | str"
    initrd: "Path | str | bytes | None"
    memory: int
    options: tuple[str, ...]
    append: str
    is_bundle: bool
    own_kernel: bool
    notice: str = ""
    reserved: int = 0

    def command_line(self, kind: str, host_options: Sequence[str] = ()) -> str:
        """The command line for a kernel of ``kind`` (see x86.loader.LoadedKernel).

        ``host_options`` are the options that Linux needs on this host. A
        kernel other than Linux gets only the bundle's and the user's options.
        The user's options come last, so they win.
        """
        defaults: Sequence[str] = ()
        append = self.append
        if kind != LINUX:
            host_options = ()
        else:
            defaults = () if self.is_bundle else (LINUX_DEFAULTS,)
            append = _join_clearcpuid(append, host_options)
        parts = (*defaults, *self.options, *host_options, append)
        return " ".join(part for part in parts if part)

    def emulation_notice(self, kind: str) -> str:
        """A sentence for the user of a host that emulates kernel code, or ""."""
        return FOREIGN_KERNEL if self.own_kernel and kind == LINUX else ""


def _join_clearcpuid(append: str, host_options: Sequence[str]) -> str:
    """``append``, with the CPU features that the host hides added to the user's clearcpuid.

    Linux reads only the last of several such options, and only the beginning of a long one.
    """
    for option in host_options:
        name, _, features = option.partition("=")
        if name == "clearcpuid" and name in append:
            import re  # few runs need it

            append = re.sub(rf"(?<!\S){name}=[^\s,]\S*", rf"\g<0>,{features}", append)
    return append


def resolve(config: MachineConfig, flavour: str) -> ResolvedGuest:
    """The guest of ``config``, in ``flavour`` if it is a bundle. UsageError if it is not found."""
    bundle = _bundle(config.guest, flavour) if config.guest is not None else None
    kernel = config.kernel or (bundle.kernel if bundle else None)
    if kernel is None:
        raise UsageError("there is no kernel to boot", "name a guest, or give --kernel FILE")
    initrd = config.initrd
    if initrd is None and bundle is not None:
        initrd = bundle.initrd
    memory = config.memory or (bundle.memory if bundle else 0) or DEFAULT_MEMORY
    has_mailbox = bundle is not None and config.agent and memory >= LEAST_WITH_MAILBOX
    return ResolvedGuest(
        kernel=kernel,
        initrd=initrd,
        memory=memory,
        options=tuple(_bundle_options(bundle, config, memory if has_mailbox else 0)),
        append=config.append,
        is_bundle=bundle is not None,
        own_kernel=bundle is None or config.kernel is not None,
        notice=_notice(bundle, flavour, config.cpus) if bundle and not config.kernel else "",
        reserved=MAILBOX_SIZE if has_mailbox else 0,
    )


def _bundle(guest: str, flavour: str) -> "Bundle":
    # Only guests by name need it.
    from pykvm.machine.bundle import find_bundle

    return find_bundle(guest, flavour)


def _notice(bundle: "Bundle", flavour: str, cpus: int) -> str:
    if (bundle.flavour, flavour) == (NATIVE, EMULATED):
        return (
            f"'{bundle.name}' has no build for hosts that emulate kernel code, as this one does: "
            "expect minutes instead of seconds"
        )
    if 0 < bundle.cpus < cpus:
        return (
            f"the {bundle.flavour} kernel of '{bundle.name}' uses {bundle.cpus} of the {cpus} CPUs;"
            " give an SMP kernel with --kernel to use them all"
        )
    return ""


def _bundle_options(
    bundle: "Bundle | None", config: MachineConfig, memory_with_mailbox: int
) -> list[str]:
    if bundle is None:
        return []
    options = [bundle.append]
    if config.console is not ConsoleMode.SHELL:
        options.append(f"pykvm.console={config.console.value}")
    if config.console_size is not None:
        options.append("pykvm.size={}x{}".format(*config.console_size))
    if config.agent:
        options.append("pykvm.agent=1")
    if memory_with_mailbox:
        options.append(mailbox_option(min(memory_with_mailbox, HOLE_START) - MAILBOX_SIZE))
    return options
