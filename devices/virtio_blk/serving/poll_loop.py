"""Serves the queues of one thread in rounds, and polls between the rounds."""

from typing import Final

from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.hot.word_watch import Watch

ROUNDS: Final = 64
"""The most rounds before the thread looks at its calls, divided by its number of queues: some
milliseconds of work."""
WORDS: Final = 3
"""The most words in memory that one queue and its engine watch."""


class PollLoop:
    """The queues of one thread. Only that thread calls it.

    Between rounds it polls the rings and engines of all queues. So a driver
    that soon adds a request need not notify, and a completion is seen at once.
    ``lost_ns``: the total time for which the host ran other threads while this thread polled.
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
        """Stop serving ``service``."""
        self.services.remove(service)

    def serve(self, waiting: set[QueueService], driver_ns: int, engine_ns: int) -> None:
        """Serve ``waiting``, then every queue that gets requests, until polling finds none.

        One poll takes ``driver_ns``, or ``engine_ns`` while operations are in
        flight. Afterwards ``waiting`` has the queues whose drivers never stop.
        Returns early when a queue breaks (``queue.error``), a service halts, or
        the host took the CPU away.
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
                break  # rest() finds new requests, and notifiers report completions
            if not self._more(waiting, driver_ns, engine_ns):
                break
        for service in awake:
            if service.halted:
                return
            if service.rest():
                waiting.add(service)

    def _more(self, waiting: set[QueueService], driver_ns: int, engine_ns: int) -> bool:
        """Poll, answer completions, and add to ``waiting`` the queues that have more requests.

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
            # The thread decides whether to go on polling. rest() and the engine's notifier report
            # every change.
            self.lost_ns += watch.lost_ns
            return False
        if not changed:
            return False
        for service in self.services:
            if service.look():
                waiting.add(service)
        return True
