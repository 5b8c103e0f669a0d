"""Examines the host: KVM, memory, io_uring, the sandbox, the hot path and the bundled guest."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from pykvm.cli.doctor.report import Mark, Report
from pykvm.errors import HostError, PykvmError
from pykvm.host import io_uring
from pykvm.kvm import constants as c
from pykvm.kvm.probe import probe
from pykvm.kvm.system import Kvm
from pykvm.machine.bundle import BUNDLED, BUNDLES
from pykvm.machine.config import DEFAULT_MEMORY, MIB
from pykvm.machine.create import NEEDED
from pykvm.memory import GuestMemory
from pykvm.memory.large_pages import SETTING
from pykvm.virtio import split

_NEEDED_BY_ASSISTS = {
    c.KVM_CAP_SET_GUEST_DEBUG: "system calls cannot be delivered",
    c.KVM_CAP_X86_USER_SPACE_MSR: "system calls cannot be delivered",
    c.KVM_CAP_X86_MSR_FILTER: "system calls cannot be delivered",
    c.KVM_CAP_VCPU_EVENTS: "emulated instructions cannot raise exceptions",
}
_OPTIONAL = {
    c.KVM_CAP_MP_STATE: "needed for --cpus 2 or more, and to notice that a guest has halted",
    c.KVM_CAP_SYNC_REGS: "saves system calls at exits that read registers",
    c.KVM_CAP_EXIT_ON_EMULATION_FAILURE: "shows the bytes of an instruction that KVM refuses",
    c.KVM_CAP_GET_TSC_KHZ: "tells a guest its TSC frequency",
    c.KVM_CAP_TSC_DEADLINE_TIMER: "is the cheapest timer for a guest",
}
_INSTALL_SECONDS = 10


def examine(device: str = "/dev/kvm") -> Report:
    """A report on everything. A missing ability of the host is a finding, never an exception."""
    report = Report()
    _examine_processor(report)
    try:
        with Kvm.open(device) as kvm:
            report.api_version = c.KVM_API_VERSION
            report.add(device, f"API version {c.KVM_API_VERSION}")
            _examine_behaviour(report, kvm)
            _examine_capabilities(report, kvm)
            _examine_cpus(report, kvm)
    except PykvmError as error:
        report.fail(device, error.message, str(error))
    _examine_memory(report)
    _examine_io_uring(report)
    _examine_sandbox(report)
    _examine_form(report)
    _examine_guest(report)
    _examine_compiler(report)
    return report


def _examine_processor(report: Report) -> None:
    flags: set[str] = set()
    with suppress(OSError):
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    found = [name for flag, name in (("vmx", "Intel VT-x"), ("svm", "AMD-V")) if flag in flags]
    if found:
        report.add("processor", f"has {found[0]}")
    else:
        report.add("processor", "reports no hardware virtualization (VT-x, AMD-V)", Mark.NOTE)


def _examine_behaviour(report: Report, kvm: Kvm) -> None:
    traits = report.traits = probe(kvm, measure=True)
    if traits.slow_cpl0:
        speed = f"emulated, about {traits.cpl0_mips:.1f} million instructions per second"
        report.add("kernel code", speed, Mark.NOTE)
    else:
        report.add("kernel code", "runs on the processor")
    for reason in traits.reasons:
        report.add("assist needed", reason, Mark.NOTE)
    if not traits.needs_assists:
        report.add("assists", "none needed")


def _examine_capabilities(report: Report, kvm: Kvm) -> None:
    needed = dict(NEEDED)
    if report.traits and report.traits.needs_assists:
        needed |= _NEEDED_BY_ASSISTS
    for cap, consequence in needed.items():
        name = c.cap_name(cap)
        value = report.capabilities[name] = kvm.check_extension(cap)
        if value <= 0:
            report.fail(name, f"missing: {consequence}", f"KVM lacks {name}; use a newer kernel")
    if report.usable:
        report.add("capabilities", f"all {len(needed)} needed ones are there")
    for cap, purpose in _OPTIONAL.items():
        name = c.cap_name(cap)
        value = report.capabilities[name] = kvm.check_extension(cap)
        if value <= 0:
            report.add(name, f"missing: {purpose}", Mark.NOTE)


def _examine_cpus(report: Report, kvm: Kvm) -> None:
    for cap in (c.KVM_CAP_NR_VCPUS, c.KVM_CAP_MAX_VCPUS):
        report.capabilities[c.cap_name(cap)] = kvm.check_extension(cap)
    usual = report.capabilities["KVM_CAP_NR_VCPUS"]
    most = report.capabilities["KVM_CAP_MAX_VCPUS"] or usual
    report.add("vCPUs", f"{usual} recommended, {most} at most")


def _examine_memory(report: Report) -> None:
    try:
        memory = GuestMemory(DEFAULT_MEMORY)
    except PykvmError as error:
        report.fail("guest memory", error.message, str(error))
        return
    memory.close()
    text = f"{DEFAULT_MEMORY // MIB} MiB can be mapped: {memory.kind}"
    if memory.large_pages:
        report.add("guest memory", text)
    else:
        advice = f"; 'madvise' in {SETTING} would speed up large direct I/O"
        report.add("guest memory", text + advice, Mark.NOTE)


def _examine_io_uring(report: Report) -> None:
    if problem := io_uring.problem():
        text = f"{problem}: disks with cache=none or directsync use threads"
        report.add("io_uring", text, Mark.NOTE)
    else:
        report.add("io_uring", "permitted: disks with cache=none or directsync use it")


def _examine_sandbox(report: Report) -> None:
    """Examine the parts of the sandbox that a host may lack."""
    from pykvm.sandbox import landlock, seccomp

    try:
        report.add("Landlock", f"version {landlock.version()}: the sandbox can block files")
    except HostError as error:
        report.add("Landlock", f"{error.message}: the sandbox lacks this part", Mark.NOTE)
    try:
        report.add("seccomp", f"libseccomp {seccomp.check()}: the sandbox can filter system calls")
    except HostError as error:
        report.add("seccomp", f"{error.message}: the sandbox lacks this part", Mark.NOTE)


def _examine_form(report: Report) -> None:
    """Examine whether the hot path is compiled (speed/README.md), and from its present sources."""
    package = Path(str(split.__file__)).parent.parent
    # In a checkout devices is a link, which rglob does not follow.
    compiled = {*package.rglob("*.so"), *(package / "devices").rglob("*.so")}
    stale = [found.name.split(".")[0] for found in compiled if _is_stale(found)]
    report.form = "compiled" if compiled else "interpreted"
    if stale:
        names = ", ".join(sorted(stale))
        text = f"compiled, but {names} changed since: run 'make speed' or 'make interpreted'"
        report.add("hot path", text, Mark.NOTE)
    elif compiled:
        report.add("hot path", "compiled")
    else:
        report.add("hot path", "interpreted; 'make speed' in a checkout compiles it", Mark.NOTE)


def _is_stale(compiled: Path) -> bool:
    source = compiled.with_name(f"{compiled.name.split('.')[0]}.py")
    if not source.exists():
        return False
    # An installer may write the two files in either order.
    return source.stat().st_mtime > compiled.stat().st_mtime + _INSTALL_SECONDS


def _examine_guest(report: Report) -> None:
    manifest = BUNDLES / BUNDLED / "bundle.json"
    try:
        flavours = sorted(json.loads(manifest.read_text(encoding="utf-8"))["flavours"])
    except OSError:
        report.add("bundled guest", "not built: run 'make guest' in the checkout", Mark.NOTE)
    except (ValueError, LookupError, TypeError, RecursionError):
        report.add("bundled guest", f"{manifest} is damaged: build it again", Mark.NOTE)
    else:
        fits = report.flavour in flavours
        text = f"built: {', '.join(flavours)}"
        if report.flavour is None:
            text += "; the flavour for this host is unknown, because KVM cannot be asked"
        elif not fits:
            text += f"; this host needs {report.flavour}"
        report.add("bundled guest", text, Mark.OK if fits else Mark.NOTE)


def _examine_compiler(report: Report) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        report.add("C compiler", compiler)
    else:
        report.add("C compiler", "none: needed only to build guests", Mark.NOTE)
