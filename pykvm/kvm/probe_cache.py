"""Keeps the answer of the probe until the host restarts.

The probe takes 6 ms, which is a tenth of the time to a guest's first instruction
where KVM emulates kernel code. Its answer depends on the running kernel, its KVM
module and the processor. The key of the kept answer has all three: the kernel's boot
id, the inode of the KVM device with the time of its creation, and the processor's
vendor, model and features as KVM offers them.
"""

import os
from contextlib import suppress

from pykvm.cache import cache_folder
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.system import Kvm
from pykvm.lean.typing_names import Final

_VERSION: Final = "pykvm host traits 1"
"""The version of the file's format and of the probe. Files with a different one are ignored."""
_LEAVES: Final = (0, 1, 7, 0x8000_0001)
"""The CPUID leaves with the vendor, the model and the features."""
_REMEMBERED: Final = ("syscall_works", "cpuid_masked", "instructions_complete")


def host_traits(kvm: Kvm) -> HostTraits:
    """The answer of the probe, now or since the host was started; KvmError as from the probe.

    ``cpl0_mips`` is None. An answer that cannot be kept is probed again each time.
    """
    path = traits_file()
    try:
        key = _key(kvm) if path else ""
        known = _recall(path, key) if path else None
    except OSError:
        key, known = "", None
    if known is None:
        # Imported only if it is used, because start-up time counts.
        from pykvm.kvm.probe import probe

        known = probe(kvm)
        if key:
            with suppress(OSError):
                _remember(path, key, known)
    return known


def traits_file() -> str:
    """The path of the file with the answer; "" if there is no place for it."""
    folder = cache_folder()
    return os.path.join(folder, "host-traits") if folder else ""


def _key(kvm: Kvm) -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    device = os.fstat(kvm.fd)
    leaves = [_text(leaf) for leaf in kvm.supported_cpuid() if leaf.function in _LEAVES]
    return "\n".join([_VERSION, boot, f"{device.st_ino} {device.st_ctime_ns}", *leaves])


def _text(leaf: CpuidEntry) -> str:
    # In leaf 1, ebx has the number of the CPU that executes CPUID.
    ebx = 0 if leaf.function == 1 else leaf.ebx
    return f"{leaf.function:x}.{leaf.index} {leaf.eax:x} {ebx:x} {leaf.ecx:x} {leaf.edx:x}"


def _recall(path: str, key: str) -> HostTraits | None:
    """The answer in the file; None if the file has a different key or is damaged."""
    try:
        with open(path, encoding="ascii") as file:
            kept, _, answers = file.read(2 * len(key)).rpartition("\n")
    except (FileNotFoundError, ValueError):
        return None
    if kept != key or len(answers) != len(_REMEMBERED) or not set(answers) <= {"0", "1"}:
        return None
    pairs = zip(_REMEMBERED, answers, strict=True)
    return HostTraits(**{name: answer == "1" for name, answer in pairs})


def _remember(path: str, key: str, traits: HostTraits) -> None:
    answers = "".join(str(int(getattr(traits, name))) for name in _REMEMBERED)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Atomic, because several processes may write at once.
    own = f"{path}.{os.getpid()}"
    try:
        with open(own, "w", encoding="ascii") as file:
            file.write(f"{key}\n{answers}")
        os.replace(own, path)
    except OSError:
        with suppress(OSError):
            os.unlink(own)
        raise
