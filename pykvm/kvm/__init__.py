"""KVM from Python: the VM, its vCPUs, their exits and the threads that run them.

:class:`Kvm` owns /dev/kvm. :class:`Vm` and :class:`Vcpu` own one descriptor each.
All three are context managers. :class:`VcpuThread` runs a vCPU.
:class:`KvmPciServices` gives PCI functions MSI vectors, INTx lines and doorbells.
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
