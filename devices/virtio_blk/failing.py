"""Decides on each request that failed, as the disk's policy says, and announces it."""

from collections.abc import Callable

from pykvm.devices.virtio_blk.constants import OPERATION_NAMES, VIRTIO_BLK_T_IN
from pykvm.devices.virtio_blk.core.ordering import extent
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.devices.virtio_blk.hooks import NO_SPACE, DeviceHooks, IoError
from pykvm.devices.virtio_blk.image.file import Image
from pykvm.devices.virtio_blk.modes import ErrorAction
from pykvm.devices.virtio_blk.options import DiskOptions


class Failing:
    """The policy of ``options`` for errors of ``image``. ``halt`` halts all queues of the disk."""

    def __init__(
        self, image: Image, options: DiskOptions, hooks: DeviceHooks, halt: Callable[[], None]
    ) -> None:
        self._image = image
        self._options = options
        self._hooks = hooks
        self._halt = halt

    def decide(self, request: Request) -> ErrorAction:
        """The action for ``request``, whose ``error`` becomes the cause. In the disk's thread."""
        image, reads = self._image, request.type == VIRTIO_BLK_T_IN
        error = request.error = image.cause(request.error, extent(request)[1])
        lost = image.sync_error != 0 and not reads
        policy = self._options.rerror if reads else self._options.werror
        action = policy.action(full=error in NO_SPACE and not lost)
        name = OPERATION_NAMES[request.type]
        with self._hooks.telling:
            if action is ErrorAction.STOP:
                self._halt()
            self._hooks.on_error(IoError(name, request.sector, request.length, error, action, lost))
        return action
