"""Fixtures for tests with the bare guest."""

import random

import pytest


@pytest.fixture(scope="session")
def content() -> bytes:
    """What is on a disk of 1 MiB at first."""
    return random.Random(1).randbytes(1 << 20)
