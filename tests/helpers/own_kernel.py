"""A kernel without a bundle, as a user may have one."""

from pathlib import Path

from pykvm.kvm.probe_cache import host_traits
from pykvm.kvm.system import Kvm
from pykvm.machine.bundle import find_bundle


def own_kernel() -> Path:
    """The bundled guest's kernel that suits this host."""
    with Kvm.open() as kvm:
        flavour = "emulated" if host_traits(kvm).needs_assists else "native"
    return find_bundle("guest", flavour).kernel
