"""The monitor's socket file: its owner, the files that it replaces, and its removal."""

import os
import socket
import stat

import pytest

from pykvm.errors import UsageError
from pykvm.monitor import MonitorSocket

pytestmark = pytest.mark.kvm


def test_only_the_owner_may_use_the_file_and_the_end_removes_it(qmp_path):
    before = os.umask(0)
    try:
        with MonitorSocket(qmp_path):
            mode = os.stat(qmp_path).st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
    finally:
        os.umask(before)
    assert not qmp_path.exists()


def test_only_a_stale_socket_is_replaced(qmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(qmp_path))
    left.close()
    with MonitorSocket(qmp_path):
        with pytest.raises(UsageError, match="a process listens"):
            MonitorSocket(qmp_path)
        assert stat.S_ISSOCK(os.stat(qmp_path).st_mode)
    qmp_path.write_text("precious")
    with pytest.raises(UsageError, match="a file with this name exists"):
        MonitorSocket(qmp_path)
    assert qmp_path.read_text() == "precious"


def test_a_different_file_in_its_place_stays(qmp_path):
    with MonitorSocket(qmp_path):
        qmp_path.unlink()
        qmp_path.write_text("precious")
    assert qmp_path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 120, "too long"), ("missing/qmp", "no such file"), ("a\0b", "not a file name")],
)
def test_unusable_paths_are_errors(tmp_path, name, words):
    with pytest.raises(UsageError, match=words):
        MonitorSocket(tmp_path / name)
