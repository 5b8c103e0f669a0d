"""Fixtures for tests of whole runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from monitor_clients import served, spinning_guest

from pykvm.bare import build_bare_guest
from pykvm.machine import Machine, MachineConfig


@pytest.fixture(scope="session")
def bare_kernel() -> Path:
    """The bare-metal test guest's ELF file; see guest/bare."""
    return build_bare_guest()


@pytest.fixture
def qmp_path(tmp_path: Path) -> Path:
    """Where a monitor's socket goes."""
    return tmp_path / "qmp"


@pytest.fixture
def spinning(bare_kernel: Path) -> MachineConfig:
    """A guest that goes on until it is ended."""
    return spinning_guest(bare_kernel)


@pytest.fixture
def machine(qmp_path: Path, spinning: MachineConfig) -> Iterator[Machine]:
    """Runs a spinning guest, with its monitor at ``qmp_path``."""
    with served(qmp_path, spinning) as machine:
        machine.start()
        yield machine
