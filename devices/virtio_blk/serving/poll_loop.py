"""Serving the queues of one thread, round after round, for as long as something comes of it."""

from typing import Final

from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.hot.word_watch import Watch

ROUNDS: Final = 64
"""How often one queue is served between two looks at anything else, and several together: some
milliseconds of work at most."""
WORDS: Final = 3
"""What a queue and its engine have to watch, at most."""


class PollLoop:
    """The queues of one thread, which is the only one to call it.

    Between rounds it watches the rings and engines of all, so that a driver
    which adds a request soon need not notify, and a result is seen at once.
    ``lost_ns``: for how long, in all, the host ran others instead while this thread watched.
    """

    services: list[QueueService]
    lost_ns: int
    _watch: Watch

    def __init__(self) -> None:
        self.services = []
        self.lost_ns = 0
        self._watch = Watch(0)

    def admit(self, service: QueueService) -> None:
        """Serve ``service`` too."""
        self.services.append(service)
        self._watch = Watch(WORDS * len(self.services))

    def dismiss(self, service: QueueService) -> None:
        """Serve ``service`` no more."""
        self.services.remove(service)

    def serve(self, waiting: set[QueueService], driver_ns: int, engine_ns: int) -> None:
        """Serve those in ``waiting``, and any when more comes, until nothing comes for some time.

        That is ``driver_ns``, or ``engine_ns`` while operations execute. In
        ``waiting`` are then those of which a driver that never stops has more.
        Returns early when a queue is beyond use (``queue.error``), a service
        halted, or time was lost.
        """
        service: QueueService
        awake: set[QueueService] = set()
        for _ in range(max(1, ROUNDS // len(self.services))):
            for service in waiting:
                if service.serve():
                    awake.add(service)
                elif service.halted:
                    return
                if service.queue.error:
                    return
            waiting.clear()
            if not (driver_ns or engine_ns):
                break  # rest() finds what came meanwhile, and notifiers tell of completions
            if not self._more(waiting, driver_ns, engine_ns):
                break
        for service in awake:
            if service.halted:
                return
            if service.rest():
                waiting.add(service)

    def _more(self, waiting: set[QueueService], driver_ns: int, engine_ns: int) -> bool:
        """Wait, answer what engines have done, and put into ``waiting`` whose driver has more.

        False if nothing came.
        """
        service: QueueService
        watch = self._watch
        nanoseconds = driver_ns
        for service in self.services:
            if not service.watch(watch):
                watch.clear()
                return False
            if not service.idle:
                nanoseconds = engine_ns
        changed = watch.changes(nanoseconds)
        if watch.lost_ns:
            # The thread decides whether to go on polling. Whatever has changed, it finds out by
            # rest() and by the engine's notifier.
            self.lost_ns += watch.lost_ns
            return False
        if not changed:
            return False
        for service in self.services:
            if service.look():
                waiting.add(service)
        return True
