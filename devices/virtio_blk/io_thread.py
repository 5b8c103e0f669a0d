"""The thread in which a disk's queues are served.

It sleeps in epoll until the driver kicks, the engine has completions or its
owner wants it to stop. Kicks are watched edge-triggered, so their eventfds need
not be read, which saves a system call for each: every write to an eventfd is an
edge, whatever its counter is.
"""

import os
import select
import threading
from collections.abc import Callable, Sequence

from pykvm.devices.virtio_blk.service import QueueService


class IoThread:
    """Owns one thread, its epoll descriptor and the eventfd that stops it.

    It serves until :meth:`stop`, or until a queue breaks (``on_broken`` with
    the reason), or until a bug raises an exception (``on_failure`` with it).
    Both are called in the thread, at most once, and nothing is served after.
    """

    def __init__(
        self,
        name: str,
        services: Sequence[QueueService],
        on_broken: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Start to serve ``services``, at first without waiting for a kick."""
        self._services = tuple(services)
        self._on_broken = on_broken
        self._on_failure = on_failure
        self._stopping = False
        self._control = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._control, select.EPOLLIN)
        for service in self._services:
            self._epoll.register(service.kick, select.EPOLLIN | select.EPOLLET)
            if service.engine.notifier >= 0:
                self._epoll.register(service.engine.notifier, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and wait until what was executing is done. Not from the thread itself."""
        assert threading.current_thread() is not self._thread, "a thread cannot await its own end"
        for service in self._services:
            service.stop()
        self._stopping = True
        os.eventfd_write(self._control, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._control)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._on_failure(error)
        finally:
            for service in self._services:
                service.quiesce()

    def _serve(self) -> None:
        by_kick = {service.kick: service for service in self._services}
        by_notifier = {service.engine.notifier: service for service in self._services}
        waiting = set(self._services)
        while True:
            # A driver that refills its ring for ever gets one drain per look at the others.
            for fd, _ in self._epoll.poll(0 if waiting else None):
                if fd in by_kick:
                    waiting.add(by_kick[fd])
                elif fd in by_notifier:
                    by_notifier[fd].complete()
            if self._stopping:
                return
            for service in list(waiting):
                if not service.drain():
                    waiting.discard(service)
                if service.queue.error:
                    self._on_broken(service.queue.error)
                    return
