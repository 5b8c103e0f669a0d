"""The modes of a disk among which a user can choose, under QEMU's names where it has them. Pure."""

from enum import Enum


class MergePolicy(Enum):
    """The rule for merging the requests of one drain (``merge=``); docs/explanation/merging.md."""

    SEQUENTIAL = "sequential"
    """Merge requests of one direction that are adjacent on the disk and in the ring."""
    SORTED = "sorted"
    """Sort up to ``merge-max`` requests of one direction by sector, then merge them."""
    SORTED_BATCH = "sorted-batch"
    """Sort up to ``merge-max`` writes by sector, then merge them. Reads go first, unmerged."""
    OFF = "off"
    """Each request is an operation of its own."""


class CacheMode(Enum):
    """The cache of the image, and the moment when writes are durable, as in QEMU (``cache=``)."""

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
        """True if the image bypasses the host's page cache, with O_DIRECT."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def writeback(self) -> bool:
        """True if writes may complete before they are durable. The guest can switch that."""
        return self not in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)

    @property
    def syncs(self) -> bool:
        """True if flushes and durable writes reach stable storage."""
        return self is not CacheMode.UNSAFE


class ImageFormat(Enum):
    """The format of an image (``format=``)."""

    RAW = "raw"
    """The file holds the disk's bytes, from the first to the last, whatever they look like."""


class Locking(Enum):
    """The lock that keeps other programs from using the image (``locking=``)."""

    ON = "on"
    """Lock the image, or refuse it."""
    OFF = "off"
    """Take no lock, and ignore the locks of other programs."""
    AUTO = "auto"
    """Lock the image, unless its filesystem has no locks."""


class EngineKind(Enum):
    """The engine that executes a disk's operations (``engine=``)."""

    AUTO = "auto"
    """The engine that suits the file and the cache mode."""
    SYNC = "sync"
    """The disk's own thread, one operation at a time."""
    THREADS = "threads"
    """A few threads, each one operation at a time."""
    IO_URING = "io_uring"
    """The host's kernel, any number of operations at a time."""


class DiscardMode(Enum):
    """The treatment of the guest's discards (``discard=``)."""

    UNMAP = "unmap"
    """The host frees the space, if it can."""
    IGNORE = "ignore"
    """They succeed and do nothing."""
    OFF = "off"
    """The device does not offer VIRTIO_BLK_F_DISCARD."""


class DetectZeroes(Enum):
    """The treatment of writes whose data are zeros (``detect-zeroes=``)."""

    OFF = "off"
    """The data are not examined."""
    ON = "on"
    """The host writes zeros by its own means, without data."""
    UNMAP = "unmap"
    """Like ON, and the host may free the space."""


class ErrorPolicy(Enum):
    """The answer to a request that the host cannot carry out (``rerror=``, ``werror=``)."""

    REPORT = "report"
    """The guest gets VIRTIO_BLK_S_IOERR."""
    IGNORE = "ignore"
    """The guest gets VIRTIO_BLK_S_OK."""
    STOP = "stop"
    """The VM stops and keeps the request. A resume tries it again."""
    ENOSPC = "enospc"
    """STOP if the host only lacks space, else REPORT."""

    def action(self, full: bool) -> "ErrorAction":
        """The action after a failure. ``full``: the host only lacks space (NO_SPACE)."""
        if self is ErrorPolicy.ENOSPC:
            return ErrorAction.STOP if full else ErrorAction.REPORT
        return ErrorAction(self.value)


class ErrorAction(Enum):
    """The answer to a failed request: an :class:`ErrorPolicy` applied to an errno."""

    REPORT = "report"
    """The guest got VIRTIO_BLK_S_IOERR."""
    IGNORE = "ignore"
    """The guest got VIRTIO_BLK_S_OK."""
    STOP = "stop"
    """The request waits for a resume."""
