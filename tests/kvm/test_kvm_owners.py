"""Descriptors have one owner each, and a host without KVM gets a message with a hint."""

import errno
import os
from pathlib import Path

import pytest

from pykvm.errors import HostError, PykvmError
from pykvm.kvm import Kvm, KvmError, KvmUnavailable, MissingCapability
from pykvm.kvm import constants as c
from pykvm.kvm.routing import GsiRouter, IrqchipRoute, MsiRoute, default_irqchip_routes


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.kvm
def test_every_descriptor_is_closed_once():
    before = descriptors()
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.create_pit2()
        with vm.create_vcpu(0) as vcpu:
            assert descriptors() > before
            taken = vcpu.fd
        with pytest.raises(ValueError, match="Vcpu is closed"):
            _ = vcpu.fd
        again = os.open("/dev/null", os.O_RDONLY)  # gets the number that was given up
        assert again <= taken
        vcpu.close()
        os.fstat(again)  # a second close does not close a descriptor of a different owner
        os.close(again)
    assert kvm.closed
    assert vm.closed
    assert descriptors() == before


@pytest.mark.kvm
def test_vm_outlives_the_device():
    kvm = Kvm.open()
    vm = kvm.create_vm()
    kvm.close()
    with vm, vm.create_vcpu(0) as vcpu:
        assert vcpu.get_regs().rflags == 2


@pytest.mark.kvm
def test_failed_vcpu_leaves_nothing_open():
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
        before = descriptors()
        with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU.*EEXIST"):
            vm.create_vcpu(0)
        with pytest.raises(KvmError, match="KVM runs at most"):
            vm.create_vcpu(1 << 20)
        vm._vcpu_mmap_size = -1
        with pytest.raises(OverflowError):
            vm.create_vcpu(1)
        assert descriptors() == before


@pytest.mark.kvm
def test_capabilities_are_numbers_or_0():
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        assert kvm.check_extension(c.KVM_CAP_USER_MEMORY) == 1
        assert kvm.check_extension(9999) == 0
        vm.require(c.KVM_CAP_USER_MEMORY, c.KVM_CAP_IMMEDIATE_EXIT)
        with pytest.raises(MissingCapability) as caught:
            vm.require(c.KVM_CAP_USER_MEMORY, 9999, 9998)
        assert "KVM_CAP 9999, KVM_CAP 9998" in str(caught.value)
        with pytest.raises(MissingCapability):
            vm.enable_cap(9999)


def test_missing_capability_is_named():
    error = MissingCapability([c.KVM_CAP_IRQFD, c.KVM_CAP_IOEVENTFD])
    assert error.message == "this host's KVM lacks KVM_CAP_IRQFD, KVM_CAP_IOEVENTFD"
    assert isinstance(error, HostError)
    assert error.exit_status == 77


def test_a_missing_device_is_unavailable(tmp_path: Path):
    with pytest.raises(KvmUnavailable) as caught:
        Kvm.open(str(tmp_path / "kvm"))
    assert caught.value.exit_status == 77
    assert caught.value.errno == errno.ENOENT
    assert "there is no" in str(caught.value)
    assert "firmware" in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "device"])
def test_a_device_other_than_kvm_is_refused(tmp_path: Path, kind: str):
    path = "/dev/null"
    if kind == "file":
        path = str(tmp_path / "file")
        Path(path).write_bytes(b"x")
    before = descriptors()
    with pytest.raises(KvmUnavailable, match="is not a KVM device") as caught:
        Kvm.open(path)
    assert caught.value.exit_status == 77
    assert descriptors() == before


def test_a_directory_is_not_a_device(tmp_path: Path):
    with pytest.raises(KvmUnavailable, match="is a directory"):
        Kvm.open(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "usermod -aG kvm"),
        (errno.EPERM, "--device /dev/kvm"),
        (errno.ENODEV, "kvm_intel or kvm_amd"),
        (errno.ENXIO, "kvm_intel or kvm_amd"),
        (errno.EBUSY, "stop the hypervisor"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_each_refusal_has_its_advice(monkeypatch: pytest.MonkeyPatch, number: int, advice: str):
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmUnavailable) as caught:
        Kvm.open()
    assert advice in str(caught.value)
    assert caught.value.errno == number
    assert "\n" not in str(caught.value)


@pytest.mark.kvm
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
def test_a_device_without_permission_is_unavailable():
    if os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("/dev/kvm is open to everybody")
    os.seteuid(65534)
    try:
        with pytest.raises(KvmUnavailable) as caught:
            Kvm.open()
    finally:
        os.seteuid(0)
    assert caught.value.errno == errno.EACCES


def test_errno_and_operation_are_kept():
    error = KvmError("KVM_CREATE_VCPU", errno.EMFILE)
    assert isinstance(error, PykvmError)
    assert (error.operation, error.errno, error.exit_status) == ("KVM_CREATE_VCPU", 24, 125)
    assert str(error) == (
        "KVM_CREATE_VCPU failed: Too many open files (EMFILE); "
        "raise the limit of open files (ulimit -n)"
    )


class Table:
    """Takes routes, or refuses them."""

    def __init__(self) -> None:
        self.loads: list[list[object]] = []
        self.broken = False

    def set_gsi_routing(self, routes) -> None:
        if self.broken:
            raise KvmError("KVM_SET_GSI_ROUTING", errno.ENOMEM)
        self.loads.append(list(routes))


def test_default_routes_are_kvms_own():
    routes = default_irqchip_routes()
    assert len(routes) == 24 + 16
    assert IrqchipRoute(4, c.KVM_IRQCHIP_PIC_MASTER, 4) in routes
    assert IrqchipRoute(4, c.KVM_IRQCHIP_IOAPIC, 4) in routes
    assert IrqchipRoute(12, c.KVM_IRQCHIP_PIC_SLAVE, 4) in routes
    assert {r.gsi for r in routes if r.irqchip == c.KVM_IRQCHIP_IOAPIC} == set(range(24))


def test_router_loads_the_whole_table_and_only_after_a_change():
    table = Table()
    router = GsiRouter(table, limit=1024)
    first, second = router.allocate(), router.allocate()
    router.route(first, 0xFEE00000, 0x41)
    router.route(second, 0x1_FEE00000, 0x42)
    router.route(first, 0xFEE00000, 0x41)  # nothing new
    assert len(table.loads) == 2
    assert table.loads[-1] == [
        *default_irqchip_routes(),
        MsiRoute(24, 0xFEE00000, 0x41),
        MsiRoute(25, 0x1_FEE00000, 0x42),
    ]
    router.free(first)
    assert table.loads[-1] == [*default_irqchip_routes(), MsiRoute(25, 0x1_FEE00000, 0x42)]
    assert router.allocate() == 24


def test_router_forgets_a_route_that_was_refused():
    table = Table()
    router = GsiRouter(table, limit=1024)
    gsi = router.allocate()
    table.broken = True
    with pytest.raises(KvmError):
        router.route(gsi, 0xFEE00000, 0x41)
    table.broken = False
    router.route(gsi, 0xFEE00000, 0x41)
    assert table.loads[-1][-1] == MsiRoute(gsi, 0xFEE00000, 0x41)


def test_router_without_a_free_gsi_is_an_error():
    router = GsiRouter(Table(), limit=42)
    assert [router.allocate(), router.allocate()] == [24, 25]
    with pytest.raises(KvmError, match="all 42 interrupt routes"):
        router.allocate()
