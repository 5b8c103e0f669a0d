"""A thread in which queues of a disk are served: it runs an :class:`EventLoop`.

::

               pause, or an error                  no operation
               that stops the VM                   is in flight
    serving ──────────────────────────►  halting ──────────────►  halted
       ▲                                                             │
       └──────────────────────── resume ─────────────────────────────┘

Notifications during a halt are not lost: a resume looks at all queues.
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
    """Work that one thread does for a different thread, and its exception."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None


class IoThread:
    """Owns one thread and its event loop, and carries out the halts of its IoThreadGroup.

    It serves until :meth:`end`, or until a queue breaks (``on_broken`` with
    the reason), or until a bug raises an exception (``on_failure`` with it).
    Both are called in the thread, at most once, and end the service. Only the
    thread itself knows that its queues are quiet; :attr:`quiet` passes it on.
    The methods wait only where they say so.
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
        OSError if the host has no descriptors left.
        """
        self._on_broken = on_broken
        self._on_failure = on_failure
        self._cpus = cpus
        self._loop = EventLoop(poll_max_ns)
        # Guards the attributes below, and wakes the waiting threads when one of them changes.
        self._state = threading.Condition()
        self._stopping = False
        self._halting = False  # the wish; the services know whether it is carried out
        self._quiet = False
        self._ended = False
        self._later = False
        self._errands: list[_Errand] = []
        try:
            for service in services:
                self._loop.add(service)
        except BaseException:
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def load(self) -> int:
        """The number of its services."""
        return len(self._loop.services)

    def start(self) -> None:
        """Serve, at first without a notification. Once. HostError if the host has no thread."""
        assert self._thread.ident is None, "started twice"
        start(self._thread, "a disk")

    def start_later(self) -> None:
        """:meth:`start` when it is first needed. Until then it is halted, and quiet."""
        self._ask(True)
        self._obey()
        self._later = True

    def _begin(self) -> None:
        if self._later:
            self._later = False
            self.start()

    def halt(self) -> None:
        """Take no request off the rings, and start no operation. From any thread. Idempotent.

        Before a failed request halts its schedule, the device calls this, and
        only then reports the failure. So a :meth:`resume` after the report
        always follows the halt, and is not lost.
        """
        with self._state:
            self._ask(True)
            self._wake()

    def wait_halted(self, timeout: float | None = None) -> bool:
        """After :meth:`halt`: True once no operation is in flight, or the thread has ended.

        False after ``timeout`` seconds, unless that is None. Returns early if a
        different thread resumes meanwhile.
        """
        assert threading.current_thread() is not self._thread, "a thread cannot await itself"
        with self._state:
            return self._state.wait_for(
                lambda: self._quiet or self._ended or not self._halting, timeout
            )

    @property
    def quiet(self) -> bool:
        """True if no operation is in flight, and none starts before a :meth:`resume`."""
        with self._state:
            return self._quiet or self._ended

    def resume(self) -> None:
        """Resume, with the kept requests first. Harmless if nothing is halted.

        HostError as of :meth:`start`.
        """
        with self._state:
            self._ask(False)
            self._quiet = False
            self._state.notify_all()
            self._wake()
        self._begin()

    def look_again(self) -> None:
        """Obey changed rate limits. From any thread."""
        with self._state:
            self._wake()

    def serves(self, service: QueueService) -> bool:
        """True if ``service`` is one of its services."""
        return service in self._loop.services

    def add(self, service: QueueService) -> None:
        """Serve ``service`` too, at first without a notification. Returns when it is served.

        OSError, and no effect, if the host lacks memory.
        """
        self._have_done(partial(self._loop.add, service))

    def remove(self, service: QueueService) -> None:
        """Stop serving ``service``. Returns when it has no operation in flight."""
        self._have_done(partial(self._dismiss, service))

    def end(self) -> None:
        """Stop serving, await the operations in flight, and end. From any thread."""
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
        """Do ``work`` in the thread, and wait for it unless the thread has ended.

        An exception of ``work`` is raised here.
        """
        assert threading.current_thread() is not self._thread, "a thread cannot await itself"
        self._begin()
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
                del error  # it refers to this frame, and so to the service

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
                with ExitStack() as stack:  # each, even if one of them raises
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
            loop.called = False  # first: a later wish calls again
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
        """Halt or resume the services as wanted. True if the rings may be served."""
        services = self._loop.services
        while True:
            with self._state:
                if not self._halting and not any(service.halted for service in services):
                    return True
                idle = all(service.idle for service in services)
                if self._halting or not idle:
                    # Even a resume awaits the operations in flight first.
                    for service in services:
                        service.halt()
                    if idle:
                        self._quiet = True
                        self._state.notify_all()
                    return False
            self._loop.look_at_all()
            for service in services:
                service.resume()
