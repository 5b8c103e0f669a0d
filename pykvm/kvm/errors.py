"""The errors between pykvm and KVM, each with a hint.

:class:`KvmUnavailable` and :class:`MissingCapability` mean that this host cannot run
a VM (exit status 77). :class:`KvmError` means that an ioctl failed on a host that can
(exit status 125).
"""

import errno
import os
from collections.abc import Iterable

from pykvm.errors import HostError, PykvmError
from pykvm.host.limits import FILES, THREADS, advice
from pykvm.kvm.constants import cap_name

_OPEN_ADVICE = {
    errno.ENOENT: (
        "there is no {path}",
        "load the module (modprobe kvm_intel or kvm_amd), switch on virtualization (VT-x, AMD-V) "
        "in the firmware, or enable nested virtualization if this is a virtual machine",
    ),
    errno.EACCES: (
        "no permission to open {path}",
        "add yourself to its group (sudo usermod -aG kvm $USER) and log in again",
    ),
    errno.EPERM: (
        "the system forbids opening {path}",
        "a container needs the device passed to it (--device /dev/kvm)",
    ),
    errno.ENODEV: (
        "{path} exists, but no KVM module is loaded for it",
        "load kvm_intel or kvm_amd and check that the firmware has virtualization switched on",
    ),
    errno.EBUSY: (
        "KVM is busy",
        "stop the hypervisor that holds the processor's virtualization (VirtualBox, VMware)",
    ),
    errno.EISDIR: ("{path} is a directory, not the KVM device", "give the path of a KVM device"),
}
_OPEN_ADVICE[errno.ENXIO] = _OPEN_ADVICE[errno.ENODEV]

_IOCTL_ADVICE = {
    errno.EBUSY: "if a different hypervisor holds the processor's virtualization, stop it",
    errno.ENOMEM: "free some memory, or give the guest less with -m",
    errno.EMFILE: FILES,
    errno.EAGAIN: f"KVM could not start a thread for its own work: {THREADS}",
    errno.EACCES: "check the permissions of /dev/kvm",
    errno.EPERM: "a security policy (seccomp, SELinux, a container) forbids it",
    errno.EFAULT: "the guest touched memory that the host could not provide",
    errno.ENOSPC: "the kernel has no room for more of these in this VM",
    errno.EEXIST: "the same range or number is registered already",
    errno.ENOTTY: "this kernel's KVM does not know the operation; use a newer kernel",
}


class KvmError(PykvmError):
    """``operation`` (an ioctl's name) failed with ``errno``; 0: its result was impossible."""

    def __init__(self, operation: str, number: int, message: str = "", hint: str = "") -> None:
        text = message or f"{operation} failed: {os.strerror(number)} ({error_name(number)})"
        super().__init__(text, hint or advice(number, _IOCTL_ADVICE.get(number, "")))
        self.operation = operation
        self.errno = number


class KvmUnavailable(HostError):
    """KVM cannot be used on this host; ``errno`` says why (0: it is not KVM at all)."""

    def __init__(self, message: str, hint: str, number: int = 0) -> None:
        super().__init__(message, hint)
        self.errno = number

    @classmethod
    def from_open(cls, path: str, number: int) -> "KvmUnavailable":
        """The error for ``errno`` ``number`` from opening ``path``, with a hint."""
        message, hint = _OPEN_ADVICE.get(
            number, ("cannot open {path}: " + os.strerror(number), "check that KVM is available")
        )
        return cls(message.format(path=path), hint, number)


class MissingCapability(HostError):
    """This host's KVM lacks ``caps`` (numbers, KVM_CAP_*), which the VM needs."""

    def __init__(self, caps: Iterable[int]) -> None:
        self.caps = tuple(caps)
        names = ", ".join(cap_name(cap) for cap in self.caps)
        super().__init__(
            f"this host's KVM lacks {names}", "use a newer kernel, or a different host"
        )


def error_name(number: int) -> str:
    """The symbolic name of an errno, such as ``EBUSY``."""
    return errno.errorcode.get(number, str(number))
