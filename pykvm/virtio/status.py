"""The rules of the device status register (virtio 1.2 §2.1, §3.1). Pure.

The status register only gains bits until 0 is written (§2.1.1). The bits of one
write take effect in this order:

============  ======================  ==============================================
bit           needs                   effect
============  ======================  ==============================================
ACKNOWLEDGE   nothing                 set
DRIVER        ACKNOWLEDGE             set
FEATURES_OK   DRIVER                  set if the accepted bits were offered, include
                                      VERSION_1 and the device agrees; else withheld
DRIVER_OK     FEATURES_OK             set; the device is activated, or NEEDS_RESET
                                      is set if an enabled queue is impossible
FAILED        nothing                 set: the driver gave up
NEEDS_RESET   (the device sets it)    ignored, as are all other bits
0             nothing                 reset: returns when the device is quiet
============  ======================  ==============================================

A bit whose needs are unmet is ignored. Clearing a bit is ignored, too.
"""

from pykvm.virtio.constants import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
)

STATUS_RULES = (
    (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
    (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
    (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
    (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
    (VIRTIO_CONFIG_S_FAILED, 0),
)
"""(bit, the bit that must be set before it)."""


def reachable(status: int) -> int:
    """The bits of ``status`` that a driver can have set."""
    for bit, needed in STATUS_RULES:
        if status & needed != needed:
            status &= ~bit
    return status & sum(bit for bit, _ in STATUS_RULES)
