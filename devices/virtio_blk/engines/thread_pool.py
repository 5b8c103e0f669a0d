"""The engine ``threads``: a few threads, each of which makes one blocking system call at a time.

It is for slow disks on hosts without io_uring. As many operations are in flight
as there are threads.
"""

import errno
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.engines.sync import SyncEngine
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.hot.word_watch import Watch
from pykvm.memory.ram import Ram

WORKERS = 8


class ThreadsEngine:
    """Executes operations in at most ``workers`` threads, which start when they are needed.

    Each thread has a :class:`SyncEngine` of its own and ends at :meth:`close`.
    If the host has no more threads, those that started do the work. If none
    could start, operations fail with EAGAIN.
    """

    def __init__(self, image: Image, ram: Ram, workers: int = WORKERS) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.immediate = False
        self._image = image
        self._ram = ram
        self._most = workers
        self._executing = 0
        self._threads: list[threading.Thread] = []
        # A thread that gets None ends.
        self._waiting: SimpleQueue[Operation | None] = SimpleQueue()
        # Guards the attributes below.
        self._lock = threading.Lock()
        self._stopped = False
        self._engines: list[SyncEngine] = []
        self._done: list[Operation] = []
        self._failure: BaseException | None = None

    def submit(self, operations: Sequence[Operation]) -> None:
        """See :class:`Engine`."""
        self._executing += len(operations)
        if self._stopped:
            for operation in operations:
                operation.error = errno.ECANCELED
                self._finish(operation)
            return
        for operation in operations:
            self._waiting.put(operation)
        while len(self._threads) < min(self._executing, self._most):
            name = f"{threading.current_thread().name} {len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self._threads.append(thread)
        if not self._threads:
            self._refuse()

    def completions(self) -> Sequence[Operation]:
        """See :class:`Engine`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.notifier)
        with self._lock:
            failure, self._failure = self._failure, None
            if failure is not None:
                os.eventfd_write(self.notifier, 1)  # for the completions that remain
                raise failure
            done, self._done = self._done, []
        self._executing -= len(done)
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`."""
        return False

    def stop(self) -> None:
        """See :class:`Engine`."""
        with self._lock:
            self._stopped = True
            for engine in self._engines:
                engine.stop()

    def close(self) -> None:
        """See :class:`Engine`."""
        assert not self._executing, "completions were left behind"
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self.notifier)

    def _refuse(self) -> None:
        """Fail the waiting operations, because no thread will execute them."""
        while not self._waiting.empty():
            operation = self._waiting.get()
            assert operation is not None, "no thread has to end yet"
            operation.error = errno.EAGAIN
            operation.finished_ns = time.monotonic_ns()
            self._finish(operation)

    def _work(self) -> None:
        engine: SyncEngine | None = None
        while (operation := self._waiting.get()) is not None:
            try:
                engine = engine or self._engine()
                engine.submit((operation,))
                engine.completions()
            except BaseException as bug:
                # The engine's owner gets it, and must not wait for this operation for ever.
                operation.error = errno.EIO
                operation.finished_ns = time.monotonic_ns()
                self._finish(operation, bug)
            else:
                self._finish(operation)
        if engine is not None:
            engine.close()

    def _engine(self) -> SyncEngine:
        engine = SyncEngine(self._image, self._ram)
        with self._lock:
            self._engines.append(engine)
            if self._stopped:
                engine.stop()
        return engine

    def _finish(self, operation: Operation, failure: BaseException | None = None) -> None:
        """Make :meth:`completions` return ``operation``, and raise ``failure`` before.

        The thread that adds the first operation notifies; the others rely on it.
        :meth:`completions` clears the notifier before it takes the operations, so
        it never clears the notification of an operation that it does not take.
        """
        with self._lock:
            first = not self._done
            self._done.append(operation)
            self._failure = failure or self._failure
        if first:
            os.eventfd_write(self.notifier, 1)
