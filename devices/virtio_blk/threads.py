"""An engine of a few threads, each of which makes one blocking system call at a time.

For disks that answer slowly, where io_uring is not to be had: as many
operations as there are threads are under way side by side.
"""

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

from pykvm.devices.virtio_blk.engine import SyncEngine
from pykvm.devices.virtio_blk.image import Image
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.memory.ram import Ram
from pykvm.watch import Watch

WORKERS = 8


class ThreadsEngine:
    """Has operations executed by at most ``workers`` threads, started when they are needed.

    Each has a :class:`SyncEngine` of its own. They end at :meth:`close`. Fewer
    do where the host has no more threads; where it has none, operations fail
    with EAGAIN.
    """

    def __init__(self, image: Image, ram: Ram, workers: int = WORKERS) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._image = image
        self._ram = ram
        self._most = workers
        self._stopped = False
        self._failure: BaseException | None = None
        self._executing = 0
        self._threads: list[threading.Thread] = []
        self._engines: list[SyncEngine] = []
        # None asks the thread that gets it to end.
        self._waiting: SimpleQueue[Operation | None] = SimpleQueue()
        self._done: deque[Operation] = deque()

    @property
    def idle(self) -> bool:
        """Every operation has been returned by :meth:`completions`."""
        return not self._executing

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
        if self._failure is not None:
            failure, self._failure = self._failure, None
            os.eventfd_write(self.notifier, 1)
            raise failure
        done: list[Operation] = []
        with suppress(IndexError):
            # Until there are none, not as many as there were: see _finish.
            while True:
                done.append(self._done.popleft())
        self._executing -= len(done)
        return done

    def watch(self, watch: Watch) -> bool:
        """See :class:`Engine`."""
        return False

    def stop(self) -> None:
        """See :class:`Engine`."""
        self._stopped = True
        for engine in tuple(self._engines):
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
        engine = SyncEngine(self._image, self._ram)
        self._engines.append(engine)
        if self._stopped:
            engine.stop()
        while (operation := self._waiting.get()) is not None:
            try:
                engine.submit((operation,))
                engine.completions()
            except BaseException as bug:
                # It belongs to the engine's owner, who must not wait for this operation for ever.
                operation.error = errno.EIO
                self._failure = bug
            self._finish(operation)
        engine.close()

    def _finish(self, operation: Operation) -> None:
        """Let :meth:`completions` return ``operation``.

        If others were there before it, whoever put the first of them there
        has notified or is about to, and nobody has looked since: who looks
        goes on until nothing is left.
        """
        self._done.append(operation)
        if len(self._done) == 1:
            os.eventfd_write(self.notifier, 1)
