"""The guest of these tests: its disk has an ext4 filesystem, which is mounted on /mnt.

Its boot, mke2fs and mount happen once. Each test gets a fork of the guest from then.
"""

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel", metavar="FILE", help="a bzImage or vmlinux for test_boot.py")


@pytest.fixture(scope="session")
def pykvm_spec() -> dict[str, Any]:
    return {"disk": "2M", "prepare": "mke2fs -q -t ext4 -F /dev/vda && mount /dev/vda /mnt"}
