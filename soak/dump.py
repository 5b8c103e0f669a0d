"""Describes a disk that is stuck, for its developers."""

import sys
import threading
import traceback

from pykvm.devices.virtio_blk import VirtioBlk
from pykvm.testing.fake_transport import FakeTransport
from soak.driver import Driver

MOST = 12
"""The largest number of requests that are shown for a queue."""


def dump(transport: FakeTransport, device: VirtioBlk, driver: Driver) -> str:
    """Every thread's stack, every queue's place, and the requests in flight."""
    lines = [f"broken: {transport.broken}; failure: {device.failure!r}; limits: {device.limits}"]
    lines.append(f"features {transport.features:#x}, {len(transport.interrupts)} interrupts")
    services = device._threads._services
    for queue, flying in enumerate(driver.flying):
        service = services.get(queue)
        ring = transport.drivers[queue]
        areas = " ".join(transport.ram.read(at, 4).hex() for at in (ring.avail, ring.used))
        lines.append(f"queue {queue} of {ring.size}: {len(flying)} in flight; areas {areas}")
        if service is None:
            lines.append("  it is not served")
        else:
            own = service.queue
            lines.append(
                f"  device: {own.in_flight} in flight, more {own.available()}; "
                f"halted {service.halted}, idle {service.idle}, wake {service.wake_ns}; "
                f"{type(service.engine).__name__}"
            )
        for head, sent in list(flying.items())[:MOST]:
            lines.append(f"  head {head}: {sent}, issued at {sent.access.issued}")
        if len(flying) > MOST:
            lines.append("  …")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        lines.append(f"thread {names.get(ident, ident)}:")
        lines += [line.rstrip() for line in traceback.format_stack(frame)[-4:]]
    return "\n".join(lines)
