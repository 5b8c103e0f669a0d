"""A control with fake vCPUs and disks, whose thread runs."""

from collections.abc import Iterator

import pytest
from control_rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.control.start()
    yield rig
    for vcpu in rig.vcpus:
        vcpu.idle.set()
    rig.control.close()
    assert not rig.errors
