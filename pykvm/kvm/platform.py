"""What PCI functions get from KVM: MSI vectors, INTx lines and doorbells.

Implements the protocols of ``pykvm/pci/platform.py`` without importing them.
"""

from pykvm.kvm.routing import GsiRouter
from pykvm.kvm.vm import Vm


class KvmPlatform:
    """The services of one VM; give it to every PCI function. See pci.platform.Platform."""

    def __init__(self, vm: Vm) -> None:
        raise NotImplementedError
