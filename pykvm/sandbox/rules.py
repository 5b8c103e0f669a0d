"""The allowed system calls of a confined process. All others fail with EPERM.

docs/reference/sandbox.md has the same list for people, and a test compares the two.

An argument that the kernel takes as an ``int`` is compared only in its lower 32 bits, because the
upper bits are undefined.
"""

from collections.abc import Iterator

from pykvm.lean.records import record
from pykvm.lean.typing_names import Final

_INT: Final = 0xFFFF_FFFF
_POINTER: Final = (1 << 64) - 1

_PROT_EXEC: Final = 4
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EMPTY_PATH: Final = 0x1000
_PR_SET_NAME: Final = 15
_MADV: Final = (4, 8, 14)  # MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE
_MADV_DONTFORK: Final = 10
_FCNTL: Final = (1, 2, 3, 4, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC

_CLONE_OF_A_THREAD: Final = 0x3D0F00
"""CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID."""
_CLONE_DETACHED: Final = 0x400000  # means nothing to the kernel; musl sets it

_KVMIO: Final = 0xAE00
_IOC_TYPE: Final = 0xFF00
_TERMINAL: Final = (
    0x5401,  # TCGETS
    0x5402,  # TCSETS
    0x5403,  # TCSETSW
    0x5404,  # TCSETSF
    0x540F,  # TIOCGPGRP
    0x5413,  # TIOCGWINSZ
)
_ALLOCATION: Final = (
    0x1277,  # BLKDISCARD
    0x127F,  # BLKZEROOUT
    0x4030_582B,  # FS_IOC_UNRESVSP64
    0x4030_5839,  # FS_IOC_ZERO_RANGE
)
_FIONBIO: Final = 0x5421
_PAGEMAP_SCAN: Final = 0xC060_6610
_FIOCLEX: Final = 0x5451
_F_ADD_SEALS: Final = 1033


@record
class Only:
    """A condition: the bits ``mask`` of argument number ``argument`` equal one of ``values``."""

    argument: int
    mask: int
    values: tuple[int, ...]


@record
class Rule:
    """The system calls ``calls`` are allowed if ``only`` holds. None: always."""

    calls: tuple[str, ...]
    only: Only | None = None


def allowed(pid: int, *, monitor: bool, rings: bool, snapshots: bool = False) -> Iterator[Rule]:
    """The rules for process ``pid``.

    ``monitor``: it has a monitor. ``rings``: it uses io_uring. ``snapshots``: it saves its guest.
    """
    yield from _on_descriptors()
    yield from _waiting()
    yield from _memory()
    yield from _threads(pid)
    if monitor:
        yield from _monitor()
    if snapshots:
        yield from _snapshots()
    if rings:
        # seccomp does not see operations submitted to a ring, but Landlock does.
        yield _rule("io_uring_setup io_uring_enter")


ABSENT: Final = ("clone3",)
"""System calls that fail with ENOSYS instead of EPERM. The flags of clone3 are in memory, where no
filter sees them. The C library falls back to clone on ENOSYS."""


def _rule(calls: str, only: Only | None = None) -> Rule:
    return Rule(tuple(calls.split()), only)


def _on_descriptors() -> Iterator[Rule]:
    yield _rule("read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek")
    yield _rule("fsync fdatasync fallocate ftruncate fstat close")
    yield _rule("newfstatat", Only(3, _INT, (_AT_EMPTY_PATH,)))
    yield _rule("fcntl", Only(1, _INT, _FCNTL))
    yield _rule("ioctl", Only(1, _IOC_TYPE, (_KVMIO,)))
    yield _rule("ioctl", Only(1, _INT, _TERMINAL))
    yield _rule("ioctl", Only(1, _INT, _ALLOCATION))


def _waiting() -> Iterator[Rule]:
    yield _rule("epoll_create1 epoll_ctl epoll_wait epoll_pwait poll ppoll select pselect6")
    yield _rule("eventfd2 timerfd_create timerfd_settime futex")
    yield _rule("nanosleep clock_nanosleep restart_syscall sched_yield")
    yield _rule("clock_gettime clock_getres gettimeofday time")


def _memory() -> Iterator[Rule]:
    yield _rule("brk munmap mremap getrandom")
    yield _rule("mmap mprotect", Only(2, _PROT_EXEC, (0,)))
    yield _rule("madvise", Only(2, _INT, _MADV))


def _threads(pid: int) -> Iterator[Rule]:
    yield _rule("clone", Only(0, _INT & ~_CLONE_DETACHED, (_CLONE_OF_A_THREAD,)))
    yield _rule("set_robust_list rseq gettid getpid getpgrp exit exit_group")
    yield _rule("sched_getaffinity sched_setaffinity", Only(0, _INT, (0,)))
    yield _rule("prctl", Only(0, _INT, (_PR_SET_NAME,)))
    yield _rule("rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack pause")
    yield _rule("kill tgkill", Only(0, _INT, (pid,)))


def _monitor() -> Iterator[Rule]:
    yield _rule("accept4 recvfrom getsockname getpeername")
    yield _rule("sendto", Only(4, _POINTER, (0,)))
    yield _rule("ioctl", Only(1, _INT, (_FIONBIO,)))
    # At the end pykvm removes the socket, if the path still leads to the socket that it made.
    yield _rule("newfstatat", Only(3, _INT, (_AT_SYMLINK_NOFOLLOW,)))
    yield _rule("lstat unlink")


def _snapshots() -> Iterator[Rule]:
    """Landlock confines these to the folder of the snapshots."""
    yield _rule("open openat mkdir mkdirat rename renameat renameat2 rmdir unlink unlinkat")
    yield _rule("lstat stat newfstatat getdents64")
    yield _rule("memfd_create dup2 dup3 flock")
    yield _rule("fcntl", Only(1, _INT, (_F_ADD_SEALS,)))
    yield _rule("ioctl", Only(1, _INT, (_PAGEMAP_SCAN, _FIOCLEX)))
    yield _rule("madvise", Only(2, _INT, (_MADV_DONTFORK,)))
