"""The modes of a disk among which a user can choose, under QEMU's names where it has them. Pure."""

from enum import Enum


class MergePolicy(Enum):
    """Which requests of one drain become one operation; docs/explanation/merging.md."""

    SEQUENTIAL = "sequential"
    """Requests of one direction that follow each other on the disk, in the order of the ring."""
    SORTED = "sorted"
    """Up to ``merge-max`` requests of one direction, sorted by sector."""
    SORTED_BATCH = "sorted-batch"
    """Up to ``merge-max`` writes, sorted by sector, whatever reads come in between."""
    OFF = "off"
    """None."""


class CacheMode(Enum):
    """How the image is cached and when writes are durable, as QEMU's ``cache=``."""

    WRITEBACK = "writeback"
    """The host's page cache; a flush puts writes on stable storage."""
    WRITETHROUGH = "writethrough"
    """The host's page cache; each write is on stable storage when it completes."""
    NONE = "none"
    """O_DIRECT; a flush puts writes on stable storage."""
    DIRECTSYNC = "directsync"
    """O_DIRECT; each write is on stable storage when it completes."""
    UNSAFE = "unsafe"
    """The host's page cache; nothing is ever put on stable storage."""

    @property
    def direct(self) -> bool:
        """Past the host's page cache, with O_DIRECT."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def writeback(self) -> bool:
        """Writes may complete before they are on stable storage. The guest may change that."""
        return self not in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)

    @property
    def syncs(self) -> bool:
        """Flushes and durable writes reach stable storage."""
        return self is not CacheMode.UNSAFE


class ImageFormat(Enum):
    """What an image is (``format=``)."""

    RAW = "raw"
    """The disk's bytes, from the first to the last, whatever they look like."""


class Locking(Enum):
    """Whether an image is locked against other users (``locking=``)."""

    ON = "on"
    """It must be."""
    OFF = "off"
    """No lock is taken, and nobody else's is looked at."""
    AUTO = "auto"
    """It is, unless its filesystem has no locks."""


class EngineKind(Enum):
    """What executes the operations of a disk (``engine=``)."""

    AUTO = "auto"
    """What suits the file and the cache mode."""
    SYNC = "sync"
    """The disk's own thread, one operation after another."""
    THREADS = "threads"
    """A few threads, each one operation at a time."""
    IO_URING = "io_uring"
    """The host's kernel, any number of operations at a time."""


class DiscardMode(Enum):
    """What becomes of the guest's discards (``discard=``)."""

    UNMAP = "unmap"
    """The host gets the space back, if it can take it."""
    IGNORE = "ignore"
    """Nothing; they succeed."""
    OFF = "off"
    """The guest is offered none."""


class DetectZeroes(Enum):
    """What becomes of writes whose data are zeros (``detect-zeroes=``)."""

    OFF = "off"
    """Nobody looks."""
    ON = "on"
    """The host makes zeros, without data."""
    UNMAP = "unmap"
    """… and may free the space."""


class ErrorPolicy(Enum):
    """What becomes of a request that the host could not carry out (``rerror=``, ``werror=``)."""

    REPORT = "report"
    """The guest gets VIRTIO_BLK_S_IOERR."""
    IGNORE = "ignore"
    """The guest gets VIRTIO_BLK_S_OK."""
    STOP = "stop"
    """The VM stops, keeps the request, and tries it again when it goes on."""
    ENOSPC = "enospc"
    """Stop if all that lacks is space, else report."""

    def action(self, full: bool) -> "ErrorAction":
        """What it says of a failure. ``full``: all that lacks is space (NO_SPACE)."""
        if self is ErrorPolicy.ENOSPC:
            return ErrorAction.STOP if full else ErrorAction.REPORT
        return ErrorAction(self.value)


class ErrorAction(Enum):
    """What was done with a request that failed: an :class:`ErrorPolicy` applied to an errno."""

    REPORT = "report"
    """The guest got VIRTIO_BLK_S_IOERR."""
    IGNORE = "ignore"
    """The guest got VIRTIO_BLK_S_OK."""
    STOP = "stop"
    """The request waits until the VM goes on."""
