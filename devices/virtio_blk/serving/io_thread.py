"""A thread in which queues of a disk are served.

It sleeps in epoll until the driver kicks, the engine has completions or its
owner wants something. Kicks are watched edge-triggered, so their eventfds need
not be read, which saves a system call for each: every write to an eventfd is an
edge, whatever its counter is.

::

               pause, or an error                    nothing is
               that is to stop the VM                executing
    serving ──────────────────────────►  halting ──────────────►  halted
       ▲                                                             │
       └──────────────────────── resume ─────────────────────────────┘

Kicks that come while the services are halted are not lost: all queues are
looked at when they go on.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial

from pykvm.devices.virtio_blk.serving.contention import Contention
from pykvm.devices.virtio_blk.serving.poll_loop import Rounds
from pykvm.devices.virtio_blk.serving.poll_time import AdaptivePolling
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.errors import HostError, reason_of
from pykvm.host.threads import cpu_list, run_on, show_thread_name, start

MOST_SECONDS = 3600.0
"""The longest sleep with an end: epoll takes no more than 24 days, and a rate limit may say so."""
PATIENCE = 16
"""A disk's answer may take so many times ``poll_max_ns`` and be watched for: a driver's next
request comes after some µs or not at all, but no disk is as quick as that."""
MOST_PATIENT_NS = 1_000_000
"""… but at most so long."""


class _Errand:
    """What a thread is to do for another one, and what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None


class IoThread:
    """Owns one thread, its epoll descriptor and the eventfd that wakes it.

    It serves until :meth:`end`, or until a queue breaks (``on_broken`` with
    the reason), or until a bug raises an exception (``on_failure`` with it).
    Both are called in the thread, at most once, and nothing is served after.
    When one service halts by itself, which :meth:`halt` announces, the others
    are halted with it. The methods wait only where they say so.
    """

    def __init__(
        self,
        name: str,
        services: Sequence[QueueService],
        on_broken: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
        poll_max_ns: int = 0,
        cpus: Collection[int] = (),
    ) -> None:
        """:meth:`start` lets it serve ``services``.

        ``poll_max_ns``: the longest to watch rings before sleeping. What executes is watched for
        :data:`PATIENCE` times as long, a millisecond at most.
        ``cpus``: the host's CPUs that it may run on; none: any.
        OSError if the host has not the descriptors.
        """
        self._on_broken = on_broken
        self._on_failure = on_failure
        self._cpus = cpus
        self._for_driver = AdaptivePolling(poll_max_ns)
        self._for_engine = AdaptivePolling(min(PATIENCE * poll_max_ns, MOST_PATIENT_NS))
        self._polls = poll_max_ns > 0
        self._contention = Contention()
        self._rounds = Rounds()
        self._called = True  # a halt, a resume, an errand or the end is wanted, perhaps
        self._changed = False  # rate limits, perhaps; for the thread itself
        # Served when there is time: kicked, or more was waiting than some rounds take.
        self._waiting: set[QueueService] = set()
        self._by_kick: dict[int, QueueService] = {}
        self._by_notifier: dict[int, QueueService] = {}
        # Guards what follows, and tells who waits that something of it has changed.
        self._state = threading.Condition()
        self._stopping = False
        self._halting = False  # what is wanted; whether it was done, the services know
        self._quiet = False
        self._ended = False
        self._errands: list[_Errand] = []  # what others want done in the thread
        self._control = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with ExitStack() as undo:
            undo.callback(os.close, self._control)
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            self._epoll.register(self._control, select.EPOLLIN)
            for service in services:
                self._admit(service)
            undo.pop_all()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def load(self) -> int:
        """How many services it has."""
        return len(self._by_kick)

    def start(self) -> None:
        """Serve, at first without waiting for a kick. Once. HostError if there is no thread."""
        assert self._thread.ident is None, "started twice"
        start(self._thread, "a disk")

    def halt(self) -> None:
        """Take nothing more off the rings, and start nothing. From any thread. Idempotent.

        A service that is about to halt by itself has it called before anybody
        else hears of the reason: a :meth:`resume` from then on is an answer to
        it, and must not be lost. The thread does not notice by itself that a
        service has halted.
        """
        with self._state:
            self._ask(True)
            self._wake()

    def wait_halted(self, timeout: float | None = None) -> bool:
        """Once halted: True when nothing is executing, or the thread has ended.

        False after ``timeout`` seconds, if that is not None. Returns early if
        another thread resumes meanwhile.
        """
        assert threading.current_thread() is not self._thread, "a thread cannot await itself"
        with self._state:
            return self._state.wait_for(
                lambda: self._quiet or self._ended or not self._halting, timeout
            )

    @property
    def quiet(self) -> bool:
        """Nothing is executing, nor will be before a :meth:`resume`."""
        with self._state:
            return self._quiet or self._ended

    def resume(self) -> None:
        """Go on, with what was kept first. Harmless if nothing is halted."""
        with self._state:
            self._ask(False)
            self._quiet = False
            self._state.notify_all()
            self._wake()

    def look_again(self) -> None:
        """The rate limits are others. From any thread."""
        with self._state:
            self._wake()

    def serves(self, service: QueueService) -> bool:
        """Is ``service`` one of those that it has?"""
        return service.kick in self._by_kick

    def add(self, service: QueueService) -> None:
        """Serve ``service`` too, at first without waiting for a kick; returns when it does.

        OSError, and nothing done, if the host has not enough memory.
        """
        self._have_done(partial(self._admit, service))

    def remove(self, service: QueueService) -> None:
        """Let nothing of ``service`` start any more; returns when it executes nothing."""
        self._have_done(partial(self._dismiss, service))

    def end(self) -> None:
        """Stop serving, await what is executing and end. From any thread."""
        with self._state:
            self._stopping = True
            for service in list(self._by_kick.values()):
                service.stop()
            self._wake()

    def join(self) -> None:
        """After :meth:`end`: wait until the thread has ended, if it began. Not from itself."""
        assert threading.current_thread() is not self._thread, "a thread cannot await its own end"
        if self._thread.ident is not None:
            self._thread.join()
        with self._state:
            self._ended = True
            self._state.notify_all()
        self._epoll.close()
        os.close(self._control)

    def _have_done(self, work: Callable[[], None]) -> None:
        """Have ``work`` done in the thread and wait for that, unless the thread has ended.

        What it raises is raised here.
        """
        assert threading.current_thread() is not self._thread, "a thread cannot await itself"
        errand = _Errand(work)
        with self._state:
            self._errands.append(errand)
            self._wake()
            self._state.wait_for(lambda: self._ended or errand not in self._errands)
        error, errand.error = errand.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # which knows this frame, and the service that is to go

    def _ask(self, halt: bool) -> None:
        self._halting = halt
        for service in list(self._by_kick.values()):
            service.ask(halt)

    def _wake(self) -> None:
        self._called = True
        if not self._ended:  # and perhaps closed
            os.eventfd_write(self._control, 1)

    def _run(self) -> None:
        try:
            show_thread_name(self._thread.name)
            self._choose_cpus()
            self._serve()
        except BaseException as error:
            self._on_failure(error)
        finally:
            try:
                with ExitStack() as stack:  # each, whatever becomes of the others
                    for service in self._by_kick.values():
                        stack.callback(service.quiesce)
            finally:
                with self._state:
                    self._ended = True
                    self._state.notify_all()

    def _choose_cpus(self) -> None:
        try:
            run_on(self._cpus)
        except OSError as error:
            raise HostError(
                f"a disk's thread may not run on CPU {cpu_list(self._cpus)}: {reason_of(error)}"
            ) from None

    def _serve(self) -> None:
        by_kick, by_notifier, waiting = self._by_kick, self._by_notifier, self._waiting
        may_serve = False
        while True:
            if self._called or not may_serve:
                may_serve = self._obey()
            polls = self._may_poll()
            for fd, _ in self._events(polls, sleep=not (waiting and may_serve)):
                if fd in by_kick:
                    waiting.add(by_kick[fd])
                elif fd in by_notifier:
                    by_notifier[fd].complete()
                    if polls and self._for_engine.now_ns:
                        # A driver answers results with more requests: watched for, not awaited.
                        waiting.add(by_notifier[fd])
                else:
                    os.eventfd_read(self._control)
                    self._changed = True
            if self._stopping:
                return
            if self._errands:
                self._do_errands()
                continue
            self._complete_due()
            if waiting and polls:
                self._rounds.serve(waiting, self._for_driver.now_ns, self._for_engine.now_ns)
            elif waiting:
                self._rounds.serve(waiting, 0, 0)
            for service in by_kick.values():
                if service.queue.error:
                    self._on_broken(service.queue.error)
                    return

    def _may_poll(self) -> bool:
        """Is it to poll, and are there CPUs enough for that?"""
        if not self._polls:
            return False
        return not self._contention.look(time.monotonic_ns(), self._rounds.lost_ns)

    def _do_errands(self) -> None:
        for errand in list(self._errands):
            try:
                errand.work()
            except BaseException as error:
                errand.error = error
            with self._state:
                self._errands.remove(errand)
                self._state.notify_all()

    def _admit(self, service: QueueService) -> None:
        notifier = service.engine.notifier
        self._epoll.register(service.kick, select.EPOLLIN | select.EPOLLET)
        if notifier >= 0:
            try:
                self._epoll.register(notifier, select.EPOLLIN)
            except BaseException:
                self._epoll.unregister(service.kick)
                raise
            self._by_notifier[notifier] = service
        self._by_kick[service.kick] = service
        self._rounds.admit(service)
        self._waiting.add(service)

    def _dismiss(self, service: QueueService) -> None:
        service.quiesce()
        self._rounds.dismiss(service)
        del self._by_kick[service.kick]
        self._epoll.unregister(service.kick)
        if self._by_notifier.pop(service.engine.notifier, None) is not None:
            self._epoll.unregister(service.engine.notifier)
        self._waiting.discard(service)

    def _events(self, polls: bool, sleep: bool) -> list[tuple[int, int]]:
        if not sleep:
            return self._epoll.poll(0)
        awaited = self._for_driver
        wake = 0
        for service in self._by_kick.values():
            if not service.idle:
                awaited = self._for_engine
            if (due := service.wake_ns) and (not wake or due < wake):
                wake = due
        began = time.monotonic_ns()
        timeout = min(max(0, wake - began) / 1e9, MOST_SECONDS) if wake else None
        events = self._epoll.poll(timeout)
        if polls:
            awaited.slept(time.monotonic_ns() - began)
        return events

    def _complete_due(self) -> None:
        """Let those go on whose rate limits allow that by now, or may be others by now."""
        for service in self._by_kick.values():
            wake = service.wake_ns
            if wake and (self._changed or wake <= time.monotonic_ns()):
                service.complete()
        self._changed = False

    def _obey(self) -> bool:
        """Halt or resume the services as wanted; whether the rings may be looked at."""
        self._called = False  # first: what is wanted from now on sets it again
        services = self._by_kick.values()
        while True:
            with self._state:
                if not self._halting and not any(service.halted for service in services):
                    return True
                idle = all(service.idle for service in services)
                if self._halting or not idle:
                    # Resumed or not, what is executing is awaited first.
                    for service in services:
                        service.halt()
                    if idle:
                        self._quiet = True
                        self._state.notify_all()
                    return False
            self._waiting.update(services)
            for service in services:
                service.resume()
