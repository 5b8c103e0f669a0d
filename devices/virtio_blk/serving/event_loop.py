"""The inner loop of an I/O thread: sleep, take completions, serve queues, poll.

It sleeps in epoll until a driver notifies, an engine completes operations, or a
different thread calls. Notifications are edge-triggered: every write to an eventfd
is an edge, whatever its counter is. So the loop never reads their eventfds, which
saves a system call for each.
"""

import errno
import os
import select
import time
from array import array
from contextlib import ExitStack
from typing import Final

from pykvm.devices.virtio_blk.serving.contention import Contention
from pykvm.devices.virtio_blk.serving.poll_loop import PollLoop
from pykvm.devices.virtio_blk.serving.poll_time import AdaptivePolling
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.hot import cython_stub as cython
from pykvm.hot.words import Words32

if cython.compiled:
    from cython.cimports.c_calls import epoll_wait
    from cython.cimports.libc import errno as c_errno

_MOST_MS: Final = 3_600_000
"""The longest sleep that ends: epoll takes at most 24 days, and a rate limit may ask for more."""
_PATIENCE: Final = 16
"""The thread polls this many times longer for a disk than for a driver. A driver's next request
comes within some µs or not at all, and no disk is that quick."""
_MOST_PATIENT_NS: Final = 1_000_000
"""The longest time to poll for a disk."""
_EVENTS: Final = 64
"""Events taken from epoll at once."""
_EVENT_WORDS: Final = 3
"""Words of 32 bits in one packed ``struct epoll_event``: events, then data, which holds the fd."""
_MS: Final = 1_000_000


class EventLoop:
    """Serves queues in the thread that calls :meth:`run`. Other threads use only :meth:`call`.

    ``called``: a thread has called since the owner last cleared this. ``error``: the reason why a
    queue broke, or an empty string.
    """

    called: bool
    error: str
    services: list[QueueService]
    _epoll: select.epoll
    _control: int
    _events: Words32
    _events_at: int
    _fd: int
    _changed: bool
    _polls: bool
    _for_driver: AdaptivePolling
    _for_engine: AdaptivePolling
    _contention: Contention
    _poll_loop: PollLoop
    _waiting: set[QueueService]
    _by_fd: dict[int, QueueService]

    def __init__(self, poll_max_ns: int) -> None:
        """``poll_max_ns``: the longest time to poll for a driver before sleeping, 0 for none.

        The loop polls for an engine :data:`_PATIENCE` times as long, 1 ms at most.
        OSError if the host has no more descriptors.
        """
        self.called = True
        self.error = ""
        self.services = []
        self._changed = False
        self._polls = poll_max_ns > 0
        self._for_driver = AdaptivePolling(poll_max_ns)
        self._for_engine = AdaptivePolling(min(_PATIENCE * poll_max_ns, _MOST_PATIENT_NS))
        self._contention = Contention()
        self._poll_loop = PollLoop()
        # The queues to serve next: notified, or with more requests than some rounds take.
        self._waiting = set()
        self._by_fd = {}
        events = array("I", bytes(4 * _EVENT_WORDS * _EVENTS))
        self._events = memoryview(events)
        self._events_at = events.buffer_info()[0]
        self._control = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with ExitStack() as undo:
            undo.callback(os.close, self._control)
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            self._epoll.register(self._control, select.EPOLLIN)
            undo.pop_all()
        self._fd = self._epoll.fileno()

    def add(self, service: QueueService) -> None:
        """Serve ``service`` too, at first without waiting for a notification. OSError."""
        notifier = service.engine.notifier
        self._epoll.register(service.kick, select.EPOLLIN | select.EPOLLET)
        if notifier >= 0:
            try:
                self._epoll.register(notifier, select.EPOLLIN)
            except BaseException:
                self._epoll.unregister(service.kick)
                raise
            self._by_fd[notifier] = service
        self._by_fd[service.kick] = service
        self.services.append(service)
        self._poll_loop.admit(service)
        self._waiting.add(service)

    def remove(self, service: QueueService) -> None:
        """Stop serving ``service``, which executes nothing."""
        self._poll_loop.dismiss(service)
        self.services.remove(service)
        for fd in (service.kick, service.engine.notifier):
            if self._by_fd.pop(fd, None) is not None:
                self._epoll.unregister(fd)
        self._waiting.discard(service)

    def look_at_all(self) -> None:
        """Serve every queue in the next :meth:`run`, notified or not."""
        self._waiting.update(self.services)

    def call(self) -> None:
        """Have :meth:`run` return soon. From any thread."""
        self.called = True
        os.eventfd_write(self._control, 1)

    def close(self) -> None:
        """Close the descriptors. No thread may call the loop from now on."""
        self._epoll.close()
        os.close(self._control)

    def run(self, may_serve: bool) -> None:
        """Serve until a thread calls or a queue breaks (``error``).

        Without ``may_serve``, leave the rings alone: wait once, for completions or a call.
        """
        service: QueueService
        while True:
            polls = self._polls and not self._contention.look(
                time.monotonic_ns(), self._poll_loop.lost_ns
            )
            self._take_events(polls, not (self._changed or (self._waiting and may_serve)))
            if self.called:
                return
            self._complete_due()
            if self._waiting and may_serve:
                if polls:
                    driver_ns, engine_ns = self._for_driver.now_ns, self._for_engine.now_ns
                    self._poll_loop.serve(self._waiting, driver_ns, engine_ns)
                else:
                    self._poll_loop.serve(self._waiting, 0, 0)
            for service in self.services:
                if service.queue.error:
                    self.error = service.queue.error
                    return
            if not may_serve:
                return

    def _take_events(self, polls: bool, sleep: bool) -> None:
        """Take completions and notifications. ``sleep``: wait for the first of them."""
        service: QueueService
        if sleep:
            awaited = self._for_driver
            wake: int = 0
            for service in self.services:
                if not service.idle:
                    awaited = self._for_engine
                due: int = service.wake_ns
                if due and (not wake or due < wake):
                    wake = due
            began: int = time.monotonic_ns()
            timeout = -1
            if wake:
                timeout = min(max(0, (wake - began + _MS - 1) // _MS), _MOST_MS)
            count = self._wait(timeout)
            if polls:
                awaited.slept(time.monotonic_ns() - began)
        else:
            count = self._wait(0)
        for index in range(count):
            fd: int = self._events[_EVENT_WORDS * index + 1]
            if fd == self._control:
                os.eventfd_read(fd)
                self._changed = True
                continue
            service = self._by_fd[fd]
            if fd == service.kick:
                self._waiting.add(service)
                continue
            service.complete()
            if polls and self._for_engine.now_ns:
                # A driver often answers a completion with its next request: poll for it.
                self._waiting.add(service)

    def _wait(self, timeout: int) -> int:
        """The number of events after at most ``timeout`` ms; -1: wait for the first one."""
        count: int
        if cython.compiled:
            fd, events_at = self._fd, self._events_at
            error: int
            while True:
                with cython.nogil:
                    count = epoll_wait(fd, events_at, _EVENTS, timeout)
                    error = c_errno.errno
                # The kernel completes operations of io_uring by interrupting the thread.
                if count >= 0:
                    return count
                if error != errno.EINTR:
                    raise OSError(error, f"epoll_wait: {os.strerror(error)}")
                if timeout > 0:
                    return 0
        else:
            found = self._epoll.poll(timeout / 1000 if timeout > 0 else timeout, _EVENTS)
            count = len(found)
            for index in range(count):
                self._events[_EVENT_WORDS * index + 1] = found[index][0]
        return count

    def _complete_due(self) -> None:
        """Start the operations that the rate limits allow by now. The limits may have changed."""
        service: QueueService
        for service in self.services:
            wake: int = service.wake_ns
            if wake and (self._changed or wake <= time.monotonic_ns()):
                service.complete()
        self._changed = False
