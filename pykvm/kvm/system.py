"""/dev/kvm: the capabilities of this host, and new VMs."""

import errno
import os

from pykvm.kvm.constants import (
    KVM_API_VERSION,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
)
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.descriptor import Descriptor
from pykvm.kvm.errors import KvmError, KvmUnavailable
from pykvm.kvm.native import ffi
from pykvm.kvm.vm import Vm
from pykvm.lean.typing_names import Self

_MAX_CPUID_ENTRIES = 256
_MAX_MSRS = 1024


class Kvm(Descriptor):
    """Owns /dev/kvm. VMs outlive it, so it can be closed once they are created."""

    def __init__(self, fd: int, path: str = "/dev/kvm") -> None:
        """Take over ``fd``, an open KVM device; KvmUnavailable if it is something else."""
        super().__init__(fd)
        self.path = path
        self._supported_cpuid: list[CpuidEntry] = []
        try:
            self._check_version()
            self.vcpu_mmap_size = self._ioctl("KVM_GET_VCPU_MMAP_SIZE", KVM_GET_VCPU_MMAP_SIZE)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> Self:
        """Open ``path``; KvmUnavailable with the reason and a hint if that fails."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmUnavailable.from_open(path, error.errno or 0) from None
        return cls(fd, path)

    def _check_version(self) -> None:
        try:
            version = self._ioctl("KVM_GET_API_VERSION", KVM_GET_API_VERSION)
        except KvmError as error:
            raise KvmUnavailable(
                f"{self.path} is not a KVM device", "give the path of one: /dev/kvm", error.errno
            ) from None
        if version != KVM_API_VERSION:
            raise KvmUnavailable(
                f"KVM's interface has version {version}, pykvm needs {KVM_API_VERSION}",
                "use a kernel from 2.6.22 on",
            )

    def check_extension(self, cap: int) -> int:
        """The result of KVM_CHECK_EXTENSION for ``cap`` (KVM_CAP_*); 0 if it is absent."""
        return self._ioctl("KVM_CHECK_EXTENSION", KVM_CHECK_EXTENSION, cap)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID leaves that KVM supports on this host (KVM_GET_SUPPORTED_CPUID)."""
        if not self._supported_cpuid:
            self._supported_cpuid = self._get_supported_cpuid()
        return list(self._supported_cpuid)

    def _get_supported_cpuid(self) -> list[CpuidEntry]:
        table = ffi.new("struct kvm_cpuid2 *", {"entries": _MAX_CPUID_ENTRIES})
        table.nent = _MAX_CPUID_ENTRIES
        self._ioctl("KVM_GET_SUPPORTED_CPUID", KVM_GET_SUPPORTED_CPUID, table)
        return CpuidEntry.from_table(table)

    def msr_indices(self) -> list[int]:
        """The MSRs that may hold state of a guest on this host (KVM_GET_MSR_INDEX_LIST)."""
        table = ffi.new("struct kvm_msr_list *", {"indices": _MAX_MSRS})
        table.nmsrs = _MAX_MSRS
        self._ioctl("KVM_GET_MSR_INDEX_LIST", KVM_GET_MSR_INDEX_LIST, table)
        return list(table.indices[0 : table.nmsrs])

    def create_vm(self) -> Vm:
        """A new VM without memory or vCPUs; KvmUnavailable if the processor is taken."""
        while True:
            try:
                fd = self._ioctl("KVM_CREATE_VM", KVM_CREATE_VM)
            except KvmError as error:
                # A signal during the call makes the kernel give up.
                if error.errno == errno.EINTR:
                    continue
                if error.errno in {errno.EBUSY, errno.ENODEV}:
                    raise KvmUnavailable.from_open(self.path, error.errno) from None
                raise
            return Vm(fd, self.vcpu_mmap_size)
