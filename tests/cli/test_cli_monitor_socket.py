"""The monitor's socket file: whose it is, what it replaces, and that it goes away."""

import os
import socket
import stat
from pathlib import Path

import pytest

from pykvm.errors import UsageError
from pykvm.monitor import MonitorSocket

pytestmark = pytest.mark.kvm


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "qmp"


def test_the_file_is_its_owners_and_goes_away(path):
    before = os.umask(0)
    try:
        with MonitorSocket(path):
            mode = os.stat(path).st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_nothing_else(path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with MonitorSocket(path):
        with pytest.raises(UsageError, match="somebody listens"):
            MonitorSocket(path)
        assert stat.S_ISSOCK(os.stat(path).st_mode)
    path.write_text("precious")
    with pytest.raises(UsageError, match="a file already"):
        MonitorSocket(path)
    assert path.read_text() == "precious"


def test_another_file_in_its_place_stays(path):
    with MonitorSocket(path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 120, "too long"), ("missing/qmp", "no such file"), ("a\0b", "not a file name")],
)
def test_paths_that_cannot_be(tmp_path, name, words):
    with pytest.raises(UsageError, match=words):
        MonitorSocket(tmp_path / name)
