"""KVM from Python: the VM, its vCPUs, their exits and the threads that run them.

:class:`Kvm` owns /dev/kvm, :class:`Vm` and :class:`Vcpu` one descriptor each;
all are context managers. :class:`VcpuThread` runs a vCPU, :class:`KvmPciServices`
is what PCI functions get from KVM (MSI vectors, INTx lines, doorbells).
"""

from pykvm.kvm.errors import KvmError, KvmUnavailable, MissingCapability
from pykvm.kvm.pci_services import KvmPciServices
from pykvm.kvm.routing import GsiRouter
from pykvm.kvm.runner import VcpuThread
from pykvm.kvm.system import Kvm
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.vm import Vm

__all__ = [
    "GsiRouter",
    "Kvm",
    "KvmError",
    "KvmPciServices",
    "KvmUnavailable",
    "MissingCapability",
    "Vcpu",
    "VcpuThread",
    "Vm",
]
