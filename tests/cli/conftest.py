"""Fixtures for tests of whole runs."""

from pathlib import Path

import pytest

from pykvm.testing.bare import build_bare_guest


@pytest.fixture(scope="session")
def bare_kernel() -> Path:
    """The bare-metal test guest's ELF file; see guest/bare."""
    return build_bare_guest()
