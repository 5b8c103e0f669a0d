"""The threads of a machine's vCPUs."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

from pykvm.kvm.runner import Handler, VcpuThread
from pykvm.kvm.vcpu import Vcpu

STOP_SECONDS = 10.0
"""The time for a vCPU to leave the handler of an exit, which may print to a slow console."""


class VcpuGroup:
    """Owns the threads of all vCPUs: starts, pauses and ends them together.

    ``threads`` has a thread for each vCPU, by the vCPU's index. ``on_failure`` is called with
    an exception that ended a thread, in that thread.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self.threads: list[VcpuThread] = []
        self._on_failure = on_failure

    def add(
        self,
        vcpu: Vcpu,
        handle: Handler,
        cpus: Collection[int],
        can_stop: Callable[[Vcpu], bool] | None = None,
    ) -> None:
        """Add a thread for ``vcpu``, which may run on ``cpus`` of the host (none: on any).

        ``can_stop``: see :class:`VcpuThread`.
        """
        self.threads.append(VcpuThread(vcpu, handle, self._ended, cpus, can_stop))

    def start(self) -> None:
        """Start all threads. Once."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Ask all threads to end. Does not wait; harmless if they have ended."""
        for thread in self.threads:
            thread.stop()

    def join(self) -> None:
        """Wait until all threads have ended. TimeoutError after STOP_SECONDS."""
        for thread in self.threads:
            thread.join(STOP_SECONDS)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no vCPU runs. TimeoutError if a vCPU is busy for STOP_SECONDS."""
        with ExitStack() as stack:
            for thread in self.threads:
                stack.enter_context(thread.paused(STOP_SECONDS))
            yield

    def exits(self) -> Counter[str]:
        """The number of exits of all vCPUs, by cause."""
        counts: Counter[str] = Counter()
        for thread in self.threads:
            counts.update(thread.exit_counts)
        return counts

    def guest_exits(self) -> int:
        """The number of exits that the guest caused; pykvm's own interruptions do not count."""
        counts = self.exits()
        return counts.total() - counts["Interrupted"]

    def _ended(self, thread: VcpuThread) -> None:
        if thread.error is not None:
            self._on_failure(thread.error)
