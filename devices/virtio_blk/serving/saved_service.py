"""The service of a queue in a snapshot: the queue, and its requests without an answer."""

from pykvm.devices.virtio_blk.core.saved_request import RequestRules, load_request, save_request
from pykvm.devices.virtio_blk.observe.tracing import QueueTrace
from pykvm.devices.virtio_blk.serving.queue_service import QueueService
from pykvm.snapshot.fields import Fields, Saved


def save_service(service: QueueService) -> Fields:
    """The state of ``service``, which is halted and idle."""
    return {
        "queue": service.queue.save(),
        "requests": [save_request(request) for request in service.unanswered()],
    }


def load_service(
    service: QueueService, saved: Saved, rules: RequestRules, trace: QueueTrace | None
) -> None:
    """Have ``service`` go on with the state of :func:`save_service`, halted. SnapshotError.

    It is new, or halted and idle. ``trace`` records each step from now on.
    """
    service.queue.load(saved.part("queue"))
    waiting = service.queue.waiting()
    parts = saved.parts("requests", len(waiting))
    saved.end()
    requests = [load_request(part, service.queue.size, rules) for part in parts]
    if waiting != {request.head for request in requests}:
        saved.refuse("requests are not those of the heads in flight")
    service.keep(requests, trace)
