"""What was found out about this host's KVM by running a guest, remembered until the host restarts.

The probe takes 6 ms, a tenth of the time to a guest's first instruction where
KVM emulates. Its answer depends on the running kernel, its KVM module and the
processor. All three are in the key under which it is kept: the kernel's boot
id, the inode of the KVM device with the time of its creation, and the
processor's vendor, model and features as KVM offers them.
"""

import os
from contextlib import suppress

from pykvm.cache import cache_folder
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.system import Kvm
from pykvm.lean.records import record
from pykvm.lean.typing_names import Final

SLOW_MIPS: Final = 30.0
"""Below this, CPL 0 is emulated: emulation was seen to manage 4, any processor has hundreds."""


@record
class HostTraits:
    """How this host's KVM treats guests. The defaults are those of an ordinary host."""

    syscall_works: bool = True
    """SYSCALL from CPL 3 in 64-bit mode arrives at CPL 0."""
    cpuid_masked: bool = True
    """The guest sees the CPUID that KVM_SET_CPUID2 gave it."""
    instructions_complete: bool = True
    """Kernel code may use any instruction (FWAIT was tried)."""
    cpl0_mips: float | None = None
    """Million instructions per second at CPL 0, roughly; None if not measured."""

    @property
    def slow_cpl0(self) -> bool:
        """Kernel code is emulated one instruction at a time."""
        return self.cpl0_mips is not None and self.cpl0_mips < SLOW_MIPS

    @property
    def needs_assists(self) -> bool:
        """Whether Linux runs only with the help of :class:`pykvm.kvm.assist.Assist`."""
        return bool(self.reasons)

    @property
    def reasons(self) -> list[str]:
        """Why assists are needed, one phrase each; empty on an ordinary host."""
        found = []
        if not self.syscall_works:
            found.append("SYSCALL does not reach the guest's kernel")
        if not self.instructions_complete:
            found.append("KVM refuses instructions that kernels use")
        if not self.cpuid_masked:
            found.append("CPUID shows features that KVM cannot provide")
        return found


_VERSION: Final = "pykvm host traits 1"
"""Of the file's format and of what the probe looks at: another one, and files are not believed."""
_LEAVES: Final = (0, 1, 7, 0x8000_0001)
"""Of CPUID: the vendor, the model and the features."""
_REMEMBERED: Final = ("syscall_works", "cpuid_masked", "instructions_complete")


def host_traits(kvm: Kvm) -> HostTraits:
    """What the probe finds here, or found since the host was started; KvmError as the probe's.

    ``cpl0_mips`` is None. What cannot be remembered, for whatever reason, is probed each time.
    """
    path = traits_file()
    try:
        key = _key(kvm) if path else ""
        known = _recall(path, key) if path else None
    except OSError:
        key, known = "", None
    if known is None:
        # Start-up time is a feature: imported only to be used.
        from pykvm.kvm.probe import probe

        known = probe(kvm)
        if key:
            with suppress(OSError):
                _remember(path, key, known)
    return known


def traits_file() -> str:
    """Where it is kept; "" if nowhere."""
    folder = cache_folder()
    return os.path.join(folder, "host-traits") if folder else ""


def _key(kvm: Kvm) -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    device = os.fstat(kvm.fd)
    leaves = [_text(leaf) for leaf in kvm.supported_cpuid() if leaf.function in _LEAVES]
    return "\n".join([_VERSION, boot, f"{device.st_ino} {device.st_ctime_ns}", *leaves])


def _text(leaf: CpuidEntry) -> str:
    # In ebx leaf 1 has the number of the CPU that happens to ask.
    ebx = 0 if leaf.function == 1 else leaf.ebx
    return f"{leaf.function:x}.{leaf.index} {leaf.eax:x} {ebx:x} {leaf.ecx:x} {leaf.edx:x}"


def _recall(path: str, key: str) -> HostTraits | None:
    """What is kept under ``key``, if that is what the file has."""
    try:
        with open(path, encoding="ascii") as file:
            kept, _, answers = file.read(2 * len(key)).rpartition("\n")
    except (FileNotFoundError, ValueError):
        return None
    if kept != key or len(answers) != len(_REMEMBERED) or not set(answers) <= {"0", "1"}:
        return None
    pairs = zip(_REMEMBERED, answers, strict=True)
    pairs = zip(_REMEMBERED, answers, strict=True)
    return HostTraits(**{name: answer == "1" for name, answer in pairs})


def _remember(path: str, key: str, traits: HostTraits) -> None:
    answers = "".join(str(int(getattr(traits, name))) for name in _REMEMBERED)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Whole or not at all, and several processes may do it at once.
    own = f"{path}.{os.getpid()}"
    try:
        with open(own, "w", encoding="ascii") as file:
            file.write(f"{key}\n{answers}")
        os.replace(own, path)
    except OSError:
        with suppress(OSError):
            os.unlink(own)
        raise
