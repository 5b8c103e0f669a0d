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
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.system import Kvm
from pykvm.lean.typing_names import Final

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
