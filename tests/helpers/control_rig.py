"""Fake vCPUs and disks, and a control that stops and resumes them."""

import threading
from dataclasses import dataclass, field

from pykvm.devices.virtio_blk import ErrorAction, IoError
from pykvm.machine.events import BlockIoError, Event
from pykvm.machine.run_control import RunControl

FAILURE = BlockIoError("virtio0", IoError("write", 0, 512, 5, ErrorAction.STOP))


@dataclass
class FakeVcpu:
    """A vCPU that pauses when asked, unless it is ``busy``. Notes calls in ``log``."""

    log: list[object]
    pauses: int = 0
    idle: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def request_pause(self) -> None:
        self.log.append("ask")
        self.pauses += 1

    def wait_paused(self, timeout: float) -> bool:
        return self.idle.wait(timeout)

    def resume(self) -> None:
        assert self.pauses > 0
        self.pauses -= 1
        self.log.append("go")


@dataclass
class FakeDisk:
    """A disk that notes calls in ``log``, and calls ``in_pause`` and ``in_resume`` within them."""

    log: list[object]
    in_pause: object = None
    in_resume: object = None
    quiet: bool = True

    def pause(self, timeout: float) -> bool:
        self.log.append("disk pause")
        if self.in_pause:
            self.in_pause()
        return self.quiet

    def resume(self) -> None:
        self.log.append("disk resume")
        if self.in_resume:
            self.in_resume()


class Rig:
    """A control with two vCPUs and a disk; ``log`` has calls and events in their order.

    ``on_failure`` is called when it has been announced that the disk failed.
    """

    def __init__(self) -> None:
        self.on_failure = lambda: None
        self.log: list[object] = []
        self.over = False
        self.errors: list[BaseException] = []
        self.vcpus = [FakeVcpu(self.log), FakeVcpu(self.log)]
        self.disk = FakeDisk(self.log)
        self.control = RunControl(
            self.vcpus, [self.disk], self.announce, lambda: self.over, self.errors.append
        )

    def announce(self, event: Event) -> None:
        self.log.append(type(event))
        if event is FAILURE:
            self.on_failure()

    def count(self, item: object) -> int:
        return self.log.count(item)

    @property
    def pauses(self) -> list[int]:
        return [vcpu.pauses for vcpu in self.vcpus]

    def fail(self) -> None:
        """Report an error, as a disk's thread does."""
        self.control.io_error(FAILURE)

    def settle(self) -> None:
        """End the control thread once it has carried out all requests."""
        self.control.close()
