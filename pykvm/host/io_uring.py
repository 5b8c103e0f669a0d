"""io_uring without a library: one ring, its two queues mapped into this process.

::

    prepare ──► submission queue ──► enter (one system call) ──► kernel
    reap    ◄── completion queue ◄──────────────────────────────────┘

The kernel and this process share the memory of the queues. Only one of the two writes
each index. An index is accessed by one aligned access of 32 bits (a memoryview cast
to "I"), after the entries that it hands over: x86 keeps loads in order, and stores in
order. A full fence would only be needed for a kernel thread that polls the submission
queue. Here the kernel reads that queue during the system call.

Structures and numbers are those of <linux/io_uring.h>.
"""

import errno
import mmap
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct, unpack_from
from typing import Final

from pykvm.errors import HostError, error_text
from pykvm.host.libc import ffi, libc, system_call
from pykvm.hot import cython_stub as cython
from pykvm.hot.word_watch import Watch
from pykvm.hot.words import U64, Words16, Words32, Words64

if cython.compiled:
    from cython.cimports.c_calls import syscall
    from cython.cimports.libc import errno as c_errno

IORING_OP_FSYNC: Final = 3
IORING_OP_POLL_ADD: Final = 6
IORING_OP_READV: Final = 1
IORING_OP_WRITEV: Final = 2
IORING_OP_FALLOCATE: Final = 17
IORING_OP_READ: Final = 22
IORING_OP_WRITE: Final = 23
IORING_FSYNC_DATASYNC: Final = 1
RWF_DSYNC: Final = 2

_NR_IO_URING_SETUP = 425
_NR_IO_URING_ENTER = 426

_IORING_ENTER_GETEVENTS = 1 << 0
_IORING_SETUP_COOP_TASKRUN = 1 << 8
_IORING_SETUP_TASKRUN_FLAG = 1 << 9
_IORING_FEAT_SINGLE_MMAP = 1 << 0
_IORING_FEAT_NODROP = 1 << 1
_IORING_FEAT_SUBMIT_STABLE = 1 << 2
_IORING_FEAT_RW_CUR_POS = 1 << 3  # came with IORING_OP_READ, in Linux 5.6
_NEEDED = (
    _IORING_FEAT_SINGLE_MMAP
    | _IORING_FEAT_NODROP
    | _IORING_FEAT_SUBMIT_STABLE
    | _IORING_FEAT_RW_CUR_POS
)
_IORING_SQ_CQ_OVERFLOW = 1 << 1
_IORING_SQ_TASKRUN = 1 << 2
_IORING_OFF_SQ_RING = 0
_IORING_OFF_SQES = 0x10000000

_PARAMS_SIZE = 120
_PARAMS = Struct("<2I12xI")  # sq_entries, cq_entries, …, features
_SQ_OFFSETS, _CQ_OFFSETS = 40, 80
_OFFSETS = "<7I"
_SQE_SIZE = 64
_CQE_SIZE = 16
_MASK = (1 << 32) - 1
_SIGN = 1 << 31


class Ring:
    """One ring. Owns its descriptor and mappings; one thread uses it.

    ``fd`` is readable while there are completions. ``pending`` is the number of
    prepared submissions that the kernel has not taken yet, at most ``entries``.
    At most twice ``entries`` submissions may be without a completion that was
    taken; beyond that the kernel keeps completions outside the queue. ``result``
    belongs to the completion taken last: the system call's result, or a negative
    errno.
    """

    fd: int
    entries: int
    pending: int
    result: int
    _maps: list[mmap.mmap]
    _words: Words32
    shared: Words16
    arrivals_at: int
    summons_at: int
    _sqes: Words64
    _cqes: Words64
    _sq_tail_at: int
    _flags_at: int
    _cq_head_at: int
    _cq_tail_at: int
    _sq_mask: int
    _cq_mask: int
    _tail: int
    _head: int

    def __init__(self, entries: int) -> None:
        """``entries``: a power of 2. HostError if this host has no io_uring, or forbids it."""
        self.fd = _setup(entries, params := bytearray(_PARAMS_SIZE))
        self.entries, completions, features = _PARAMS.unpack_from(params)
        self.pending = 0
        self.result = 0
        self._maps = []
        try:
            if features & _NEEDED != _NEEDED:
                raise _unavailable("Linux before 5.6 lacks parts of it")
            self._find(params, completions)
        except BaseException:
            # A mapping holds a descriptor, which would stay open as long as the exception exists.
            for mapping in self._maps:
                with suppress(BufferError):
                    mapping.close()
            os.close(self.fd)
            raise

    def _find(self, params: bytearray, completions: int) -> None:
        _, tail, mask, _, flags, _, array = unpack_from(_OFFSETS, params, _SQ_OFFSETS)
        cq_head, cq_tail, cq_mask, _, _, cqes, _ = unpack_from(_OFFSETS, params, _CQ_OFFSETS)
        size = max(array + 4 * self.entries, cqes + _CQE_SIZE * completions)
        self._maps.append(_map(self.fd, size, _IORING_OFF_SQ_RING))
        self._maps.append(_map(self.fd, _SQE_SIZE * self.entries, _IORING_OFF_SQES))
        rings, entries = memoryview(self._maps[0]), memoryview(self._maps[1])
        self._words, self.shared = rings.cast("I"), rings.cast("H")
        self._sqes = entries.cast("Q")
        self._cqes = rings[cqes : cqes + _CQE_SIZE * completions].cast("Q")
        words = self._words
        self._sq_tail_at, self._flags_at = tail // 4, flags // 4
        self._cq_head_at, self._cq_tail_at = cq_head // 4, cq_tail // 4
        self.arrivals_at, self.summons_at = cq_tail // 2, flags // 2
        self._sq_mask, self._cq_mask = words[mask // 4], words[cq_mask // 4]
        self._tail = words[self._sq_tail_at]
        self._head = words[self._cq_head_at]
        for index in range(self.entries):  # entries are used in the order of the ring
            words[array // 4 + index] = index

    def prepare(
        self, opcode: int, fd: int, offset: U64, address: U64, length: int, flags: int, tag: int
    ) -> None:
        """Queue a submission, for which there must be room. Its completion carries ``tag``."""
        sqes = self._sqes
        at = (self._tail & self._sq_mask) * (_SQE_SIZE // 8)
        sqes[at] = opcode | fd << 32
        sqes[at + 1] = offset
        sqes[at + 2] = address
        sqes[at + 3] = length | flags << 32
        sqes[at + 4] = tag
        sqes[at + 5] = sqes[at + 6] = sqes[at + 7] = 0
        self._tail = (self._tail + 1) & _MASK
        self.pending += 1

    def submit(self) -> None:
        """Let the kernel take the pending submissions, by one system call.

        ``pending`` is not 0 afterwards if the kernel wants completions to be
        reaped first, or has no memory at the moment. A submission that was taken
        no longer needs its iovecs. OSError only for a bug.
        """
        self._words[self._sq_tail_at] = self._tail
        while self.pending:
            taken = self.enter(self.pending, 0)
            if taken > 0:
                self.pending -= taken
                continue
            error = -taken or errno.EAGAIN
            if error in (errno.EAGAIN, errno.EBUSY, errno.ENOMEM):
                return
            if error != errno.EINTR:
                raise OSError(error, f"io_uring_enter: {os.strerror(error)}")

    def enter(self, to_submit: int, flags: int) -> int:
        """Make the system call; the number of submissions that it took, or a negative errno."""
        taken: int
        error: int
        if cython.compiled:
            number, fd = _NR_IO_URING_ENTER, self.fd
            with cython.nogil:
                taken = syscall(number, fd, to_submit, 0, flags, 0, 0)
                error = c_errno.errno
        else:
            taken = libc.syscall(_NR_IO_URING_ENTER, self.fd, to_submit, 0, flags, 0, 0)
            error = ffi.errno
        return taken if taken >= 0 else -error

    def take_back(self) -> list[int]:
        """Withdraw the pending submissions; their tags."""
        tags = []
        while self.pending:
            self.pending -= 1
            self._tail = (self._tail - 1) & _MASK
            tags.append(self._sqes[(self._tail & self._sq_mask) * (_SQE_SIZE // 8) + 4])
        self._words[self._sq_tail_at] = self._tail
        return tags

    def completed(self) -> int:
        """The number of completions for :meth:`take`. Never waits."""
        words = self._words
        if words[self._flags_at] & (_IORING_SQ_TASKRUN | _IORING_SQ_CQ_OVERFLOW):
            self.enter(0, _IORING_ENTER_GETEVENTS)  # puts them into the queue
        return (words[self._cq_tail_at] - self._head) & _MASK

    def take(self) -> int:
        """Take the next completion: return its tag, and set ``result``."""
        at = (self._head & self._cq_mask) * (_CQE_SIZE // 8)
        tag = self._cqes[at]
        result = self._cqes[at + 1] & _MASK
        self.result = result - (1 << 32) if result & _SIGN else result
        self._head = (self._head + 1) & _MASK
        self._words[self._cq_head_at] = self._head
        return tag

    def watch(self, watch: Watch) -> None:
        """Give ``watch`` the words that change when there are completions to take."""
        watch.add(self.shared, self.arrivals_at, self._head & 0xFFFF)
        # The kernel sets these flags when it has completions for the next system call. They are
        # left out here, so flags that are set already count as a change.
        flags = self._words[self._flags_at] & 0xFFFF
        flags &= ~(_IORING_SQ_TASKRUN | _IORING_SQ_CQ_OVERFLOW)
        watch.add(self.shared, self.summons_at, flags)

    def close(self) -> None:
        """Unmap and close the ring. No operation may be executing."""
        nothing = memoryview(bytearray(8))  # a mapping with a view cannot be closed
        self._words, self.shared = nothing.cast("I"), nothing.cast("H")
        self._sqes = self._cqes = nothing.cast("Q")
        for mapping in self._maps:
            mapping.close()
        os.close(self.fd)


def problem() -> str:
    """Why io_uring is not available on this host; "" if it is."""
    try:
        Ring(1).close()
    except HostError as error:
        return error.message
    return ""


def _setup(entries: int, params: bytearray) -> int:
    """The descriptor of a new ring, which ``params`` describes afterwards; HostError."""
    # With these flags (Linux 5.19) the kernel does not interrupt this thread for completions.
    for flags in (_IORING_SETUP_COOP_TASKRUN | _IORING_SETUP_TASKRUN_FLAG, 0):
        params[:] = bytes(_PARAMS_SIZE)
        params[8:12] = flags.to_bytes(4, "little")
        try:
            return system_call(_NR_IO_URING_SETUP, entries, params)
        except OSError as problem:
            error = problem.errno or 0
            if error != errno.EINVAL:
                break
    raise _unavailable(reason(error, _disabled()))


def _map(fd: int, size: int, offset: int) -> mmap.mmap:
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    return mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)


def reason(error: int, disabled: str) -> str:
    """The meaning of ``error`` from io_uring_setup(2). ``disabled``: kernel.io_uring_disabled."""
    if error == errno.ENOSYS:
        return "this kernel has none, or a seccomp filter hides it"
    if error == errno.EPERM and disabled not in ("", "0"):
        return f"the sysctl kernel.io_uring_disabled is {disabled}"
    if error == errno.EPERM:
        return "a seccomp filter forbids it, such as a container's"
    if error == errno.ENOMEM:
        return "not enough memory, or too little that may be locked (ulimit -l)"
    return error_text(error)


def _disabled() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/io_uring_disabled").read_text(encoding="ascii").strip()
    return ""


def _unavailable(reason: str) -> HostError:
    return HostError(f"io_uring is not available: {reason}")
