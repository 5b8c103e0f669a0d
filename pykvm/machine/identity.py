"""The identity of a machine: two hashes, which decide if it may begin from a snapshot."""

import hashlib
from collections.abc import Sequence

from pykvm.digests import content_digest
from pykvm.errors import UsageError, reason_of
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.lean.typing_names import TYPE_CHECKING
from pykvm.machine.cpu import cpuid_of
from pykvm.machine.guest import ResolvedGuest

if TYPE_CHECKING:
    from pathlib import Path

_CACHE_LEAVES = (2, 4, 0x18, 0x8000_0005, 0x8000_0006, 0x8000_001D)
"""CPUID leaves on caches, which may differ between the processors of one host."""


def cpuid_hash(cpuid: Sequence[CpuidEntry], cpus: int) -> bytes:
    """A hash of the first vCPU's CPUID leaves. KVM's own differ with the CPU that asks for them."""
    text = ";".join(
        f"{e.function:x},{e.index:x},{e.flags:x},{e.eax:x},{e.ebx:x},{e.ecx:x},{e.edx:x}"
        for e in cpuid_of(cpuid, 0, cpus)
        if e.function not in _CACHE_LEAVES
    )
    return hashlib.sha256(text.encode()).digest()


def guest_hash(guest: ResolvedGuest, cpus: int) -> bytes:
    """A hash of all that decides how the guest boots. Files count by their contents."""
    options = [option for option in guest.options if not option.startswith("pykvm.size=")]
    parts = [content_hash(guest.kernel), content_hash(guest.initrd), *options, guest.append]
    parts += [str(cpus), str(guest.memory)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()


def content_hash(file: "Path | str | bytes | None") -> str:
    """A hash of the content of a guest's file; "" for None. UsageError if it cannot be read."""
    if file is None:
        return ""
    if isinstance(file, bytes):
        return hashlib.sha256(file).hexdigest()
    try:
        return content_digest(file)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {reason_of(error)}", "give the file that the guest booted from"
        ) from None
