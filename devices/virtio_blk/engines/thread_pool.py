"""An engine of a few threads, each of which makes one blocking system call at a time.

For disks that answer slowly, where io_uring is not to be had: as many
operations as there are threads are under way side by side.
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
    """Has operations executed by at most ``workers`` threads, started when they are needed.

    Each has a :class:`SyncEngine` of its own. They end at :meth:`close`. Fewer
    do where the host has no more threads; where it has none, operations fail
    with EAGAIN.
    """

    def __init__(self, image: Image, ram: Ram, workers: int = WORKERS) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.immediate = False
        self._image = image
        self._ram = ram
        self._most = workers
        self._executing = 0
        self._threads: list[threading.Thread] = []
        # None asks the thread that gets it to end.
        self._waiting: SimpleQueue[Operation | None] = SimpleQueue()
        # Guards what follows.
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
                os.eventfd_write(self.notifier, 1)  # for what is left
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
        """Fail what is waiting, for nobody will execute it."""
        while not self._waiting.empty():
            operation = self._waiting.get()
            assert operation is not None, "nobody is asked to end yet"
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
                # It belongs to the engine's owner, who must not wait for this operation for ever.
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
        """Let :meth:`completions` return ``operation``, and raise ``failure`` before.

        The thread that finds no other operation there notifies; those that
        find one rely on it. :meth:`completions` clears the notifier before it
        takes all that is there, so it clears no notification without taking
        what that was for.
        """
        with self._lock:
            first = not self._done
            self._done.append(operation)
            self._failure = failure or self._failure
        if first:
            os.eventfd_write(self.notifier, 1)
