"""One vCPU: its runs, and its registers between two runs."""

import errno
from collections.abc import Iterable

from pykvm.kvm import constants as c
from pykvm.kvm.constants import KVM_RUN, KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import INTERRUPTED, Exit, decode
from pykvm.kvm.native import ffi, libc
from pykvm.kvm.run_page import RunPage
from pykvm.kvm.state import VcpuState
from pykvm.lean.typing_names import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.structs import Regs, Sregs, VcpuEvents

_SIGSET_BYTES = 8
_IOC_WRITE = 1
_PARTS = {
    KVM_SYNC_X86_REGS: (
        "regs",
        ("KVM_GET_REGS", c.KVM_GET_REGS),
        ("KVM_SET_REGS", c.KVM_SET_REGS),
    ),
    KVM_SYNC_X86_SREGS: (
        "sregs",
        ("KVM_GET_SREGS", c.KVM_GET_SREGS),
        ("KVM_SET_SREGS", c.KVM_SET_SREGS),
    ),
    KVM_SYNC_X86_EVENTS: (
        "events",
        ("KVM_GET_VCPU_EVENTS", c.KVM_GET_VCPU_EVENTS),
        ("KVM_SET_VCPU_EVENTS", c.KVM_SET_VCPU_EVENTS),
    ),
}


class Vcpu(VcpuState):
    """Owns a vCPU's descriptor and its kvm_run area. One thread uses it at a time.

    ``regs``, ``sregs`` and ``events`` are the registers as of the last exit. The
    first use after an exit fetches them. To change registers, change their fields
    and call :meth:`changed` before the next :meth:`run`::

        vcpu.regs.rip += 2
        vcpu.changed(KVM_SYNC_X86_REGS)

    With :meth:`sync`, KVM_RUN delivers and takes them, without further ioctls.
    The views are valid until the next run or :meth:`close`.
    """

    def __init__(self, fd: int, index: int, mmap_size: int, sync_caps: int = 0) -> None:
        """Take over ``fd``; ``sync_caps`` is the result of KVM_CHECK_EXTENSION for SYNC_REGS."""
        super().__init__(fd)
        self.index = index
        self._sync_caps = sync_caps
        self._synced = 0
        self._loaded = 0
        self._dirty = 0
        try:
            self._page = RunPage(fd, mmap_size)
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        """Unmap and close. The vCPU must not be running."""
        if not self.closed:
            self._page.close()
        super().close()

    @property
    def page(self) -> RunPage:
        """The kvm_run area."""
        return self._page

    def run(self) -> Exit:
        """Run the guest until its next exit, and return the exit.

        The GIL is released meanwhile. The exit is Interrupted after a signal, and
        for a vCPU that received the INIT or SIPI for which it waits: run it again.
        KvmError if KVM cannot run the vCPU, such as when KVM cannot start a thread
        that it needs.
        """
        if self._dirty:
            self._hand_over_dirty()
        failed = libc.ioctl(self._fd, KVM_RUN, ffi.NULL) < 0
        self._loaded = self._synced
        if failed:
            number = ffi.errno
            self._keep_dirty()
            # A vCPU that waits to be started may return EAGAIN, and runs later. vCPU 0 never
            # waits. It returns EAGAIN, every time, if KVM cannot start a thread that it needs.
            if number == errno.EINTR or (number == errno.EAGAIN and self.index):
                return INTERRUPTED
            raise KvmError("KVM_RUN", number)
        return decode(self._page)

    def complete_io(self) -> Exit:
        """Let KVM finish the access of the last exit without running the guest.

        Returns Interrupted once it is finished; registers may be changed then. An
        access of several pieces returns the exit for its next piece: handle that,
        and call this again.
        """
        run = self._page.run
        run.immediate_exit = 1
        try:
            return self.run()
        finally:
            run.immediate_exit = 0

    def set_immediate_exit(self, on: bool) -> None:
        """Make KVM_RUN return Interrupted at once, or not. Any thread may call it."""
        self._page.run.immediate_exit = on

    def sync(self, parts: int) -> int:
        """Have KVM_RUN deliver ``parts`` (KVM_SYNC_X86_*) at every exit.

        It pays if most exits use them. Returns the parts that this host can
        deliver. The first use of other parts still fetches them with an ioctl.
        """
        self._synced = parts & self._sync_caps
        self._page.run.kvm_valid_regs = self._synced
        return self._synced

    @property
    def regs(self) -> "Regs":
        """The general registers as of the last exit."""
        regs: Regs = self._part(KVM_SYNC_X86_REGS).regs
        return regs

    @property
    def sregs(self) -> "Sregs":
        """The segment, control and system registers as of the last exit."""
        sregs: Sregs = self._part(KVM_SYNC_X86_SREGS).sregs
        return sregs

    @property
    def events(self) -> "VcpuEvents":
        """Pending and injected events as of the last exit."""
        events: VcpuEvents = self._part(KVM_SYNC_X86_EVENTS).events
        return events

    def changed(self, parts: int) -> None:
        """Load ``parts`` (KVM_SYNC_X86_*), which were changed, at the next run."""
        assert parts & ~self._loaded == 0, "only fetched parts can be changed"
        self._dirty |= parts

    def _part(self, part: int) -> Any:
        # KVM defines this area for sync only. An ioctl copies to the same place, so that
        # readers find both there.
        area = self._page.run.s.regs
        if not self._loaded & part:
            field, (name, request), _ = _PARTS[part]
            super()._ioctl(name, request, ffi.addressof(area, field))
            self._loaded |= part
        return area

    def _ioctl(self, name: str, request: int, argument: Any = 0) -> int:
        # Other ioctls must see changed registers, and an ioctl that sets state makes fetched
        # registers stale.
        self._load_dirty()
        result = super()._ioctl(name, request, argument)
        if request >> 30 == _IOC_WRITE:
            self._loaded = 0
        return result

    def _load_dirty(self) -> None:
        for part, (field, _, (name, request)) in _PARTS.items():
            if self._dirty & part:
                self._dirty &= ~part
                super()._ioctl(name, request, ffi.addressof(self._page.run.s.regs, field))

    def _hand_over_dirty(self) -> None:
        if self._sync_caps:
            self._page.run.kvm_dirty_regs = self._dirty & self._sync_caps
            self._dirty &= ~self._sync_caps
        self._load_dirty()

    def _keep_dirty(self) -> None:
        # KVM_RUN of a vCPU that waits for INIT returns early, without taking over changed
        # registers.
        assert not self.closed, "a closed vCPU cannot run"
        kept = self._page.run.kvm_dirty_regs & ~self._synced
        self._page.run.kvm_dirty_regs = 0
        self._dirty |= kept
        self._loaded |= kept

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block these signals during KVM_RUN, in place of the thread's own mask.

        A signal that the thread blocks and ``blocked`` does not contain ends
        KVM_RUN with Interrupted and stays pending; no handler runs. None returns to
        the thread's own mask.
        """
        mask = ffi.NULL
        if blocked is not None:
            bits = sum(1 << (number - 1) for number in set(blocked))
            mask = ffi.new("struct kvm_signal_mask *", {"sigset": _SIGSET_BYTES})
            mask.len = _SIGSET_BYTES
            ffi.buffer(mask.sigset)[:] = bits.to_bytes(_SIGSET_BYTES, "little")
        self._ioctl("KVM_SET_SIGNAL_MASK", c.KVM_SET_SIGNAL_MASK, mask)
