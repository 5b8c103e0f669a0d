"""Does it boot? For the bundled guest, and for a kernel of your own::

pytest examples/test_boot.py
pytest examples/test_boot.py --kernel bzImage

The first test runs your kernel with the programs of the bundled guest, so it needs virtio-pci,
virtio-blk, an 8250 serial port and an initial RAM disk. The second one needs the serial port only.
"""

from typing import Any

import pytest

import pykvm


@pytest.fixture(scope="session")
def pykvm_spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    kernel = request.config.getoption("--kernel")
    return {"guest": "guest", "kernel": kernel, "disk": "2M", "timeout": 120}


def test_programs_run_and_the_disk_works(
    pykvm_machine: pykvm.Guest, pykvm_disk: pykvm.Disk
) -> None:
    assert pykvm_machine.run("uname -s").text == "Linux"
    pykvm_machine.run("echo hello > /dev/vda && sync /dev/vda")
    assert pykvm_disk.read(0, 5) == b"hello"


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> str:
    """The kernel of your own; without one, a test that names this fixture is skipped."""
    given: str | None = request.config.getoption("--kernel")
    if given is None:
        pytest.skip("it needs --kernel FILE")
    return given


@pytest.mark.pykvm(guest=None, fail_on=())
def test_the_kernel_alone_gets_as_far_as_its_root(kernel: str, pykvm_machine: pykvm.Guest) -> None:
    """It panics there, because it finds neither an initial RAM disk nor a filesystem."""
    pykvm_machine.console.wait_for(r"Linux version (\S+)")
    outcome = pykvm_machine.wait()
    assert outcome.kind is pykvm.OutcomeKind.PANIC
    assert "Unable to mount root fs" in outcome.reason
