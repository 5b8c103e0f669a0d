"""The name of a template: a hash of all that decides how its guest boots, and of this host."""

import hashlib
import os

from pykvm import __version__
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.probe_cache import host_traits
from pykvm.kvm.system import Kvm
from pykvm.lean.typing_names import TYPE_CHECKING, Final
from pykvm.machine.config import MachineConfig
from pykvm.machine.guest import EMULATED, NATIVE, resolve
from pykvm.machine.identity import content_hash

if TYPE_CHECKING:
    pass

_PACKAGES: Final = ("agent", "kvm", "machine", "memory", "pc", "pci", "snapshot", "x86")
"""The packages whose code decides what is in a template, below the folder of pykvm."""
_PER_CPU: Final = (2, 4, 0xB, 0x18, 0x1F, 0x8000_0005, 0x8000_0006, 0x8000_001D, 0x8000_001E)
"""CPUID leaves that differ between the processors of one host: caches and topology."""


def template_key(config: MachineConfig) -> str:
    """The key of the template that a machine of ``config`` starts from, 32 hexadecimal digits.

    Disks and the trace do not count. UsageError if the guest is not found, HostError without KVM.
    """
    with Kvm.open() as kvm:
        traits = host_traits(kvm)
        leaves = kvm.supported_cpuid()
    guest = resolve(config, EMULATED if traits.needs_assists else NATIVE)
    parts = [
        *("pykvm template 1", __version__, _code()),
        *(content_hash(guest.kernel), content_hash(guest.initrd)),
        *(option for option in guest.options if not option.startswith("pykvm.size=")),
        *(guest.append, str(guest.is_bundle), str(guest.memory), str(config.cpus)),
        *_host(traits, leaves),
    ]
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:32]


def _code() -> str:
    """The names, sizes and times of the modules that decide what is in a template.

    pykvm's version does not change with each change in a checkout.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = []
    for package in _PACKAGES:
        with os.scandir(os.path.join(root, package)) as entries:
            for entry in entries:
                if entry.name.endswith((".py", ".so")):
                    status = entry.stat()
                    found.append(f"{package} {entry.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(sorted(found))


def _host(traits: HostTraits, leaves: list[CpuidEntry]) -> list[str]:
    """The processor and the kernel of this host."""
    system = os.uname()
    boot = ""
    if traits.needs_assists:
        # Guests on such a host read its own time-stamp counter, which begins anew at a restart.
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    cpuid = [
        f"{e.function:x} {e.index:x} {e.flags:x} {e.eax:x} {e.ebx:x} {e.ecx:x} {e.edx:x}"
        for e in leaves
        if e.function not in (1, *_PER_CPU)
    ]
    # In leaf 1, ebx has the number of the CPU that executes CPUID.
    cpuid += [f"1 {e.eax:x} {e.ecx:x} {e.edx:x}" for e in leaves if e.function == 1]
    flags = f"{traits.syscall_works} {traits.cpuid_masked} {traits.instructions_complete}"
    return [system.release, system.version, boot, flags, *cpuid]
