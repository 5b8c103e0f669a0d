"""A thread in which queues of a disk are served: it runs an :class:`EventLoop`.

::

               pause, or an error                    nothing is
               that is to stop the VM                executing
    serving ──────────────────────────►  halting ──────────────►  halted
       ▲                                                             │
       └──────────────────────── resume ─────────────────────────────┘

Kicks that come while the services are halted are not lost: all queues are
looked at when they go on.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial

from pykvm.devices.virtio_blk.serving.event_loop import EventLoop
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.errors import HostError, reason_of
from pykvm.host.threads import cpu_list, run_on, show_thread_name, start


class _Errand:
    """What a thread is to do for another one, and what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None


class IoThread:
    """Owns one thread and its event loop.

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

        ``poll_max_ns``: see :class:`EventLoop`.
        ``cpus``: the host's CPUs that it may run on; none: any.
        OSError if the host has not the descriptors.
        """
        self._on_broken = on_broken
        self._on_failure = on_failure
        self._cpus = cpus
        self._loop = EventLoop(poll_max_ns)
        # Guards what follows, and tells who waits that something of it has changed.
        self._state = threading.Condition()
        self._stopping = False
        self._halting = False  # what is wanted; whether it was done, the services know
        self._quiet = False
        self._ended = False
        self._errands: list[_Errand] = []  # what others want done in the thread
        try:
            for service in services:
                self._loop.add(service)
        except BaseException:
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def load(self) -> int:
        """How many services it has."""
        return len(self._loop.services)

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
        return service in self._loop.services

    def add(self, service: QueueService) -> None:
        """Serve ``service`` too, at first without waiting for a kick; returns when it does.

        OSError, and nothing done, if the host has not enough memory.
        """
        self._have_done(partial(self._loop.add, service))

    def remove(self, service: QueueService) -> None:
        """Let nothing of ``service`` start any more; returns when it executes nothing."""
        self._have_done(partial(self._dismiss, service))

    def end(self) -> None:
        """Stop serving, await what is executing and end. From any thread."""
        with self._state:
            self._stopping = True
            for service in list(self._loop.services):
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
        self._loop.close()

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
        for service in list(self._loop.services):
            service.ask(halt)

    def _wake(self) -> None:
        if not self._ended:  # and perhaps closed
            self._loop.call()

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
                    for service in self._loop.services:
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
        loop = self._loop
        while True:
            loop.called = False  # first: who wants something from now on calls again
            if self._stopping:
                return
            if self._errands:
                self._do_errands()
            loop.run(self._obey())
            if loop.error:
                self._on_broken(loop.error)
                return

    def _do_errands(self) -> None:
        for errand in list(self._errands):
            try:
                errand.work()
            except BaseException as error:
                errand.error = error
            with self._state:
                self._errands.remove(errand)
                self._state.notify_all()

    def _dismiss(self, service: QueueService) -> None:
        service.quiesce()
        self._loop.remove(service)

    def _obey(self) -> bool:
        """Halt or resume the services as wanted; whether the rings may be looked at."""
        services = self._loop.services
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
            self._loop.look_at_all()
            for service in services:
                service.resume()
