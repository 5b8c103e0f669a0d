"""The alarm: a time at which something is called, and a thread only while there is one."""

import threading
import time

import pytest
from patience import patience

from pykvm.errors import HostError
from pykvm.pc.alarm import Alarm


def test_alarm_rings_at_the_latest_time_set_and_closes():
    rang = threading.Event()
    alarm = Alarm(rang.set)
    try:
        alarm.set(time.monotonic() + 3600)
        alarm.set(time.monotonic() + 0.01)
        assert rang.wait(patience())
    finally:
        alarm.close()
    alarm.set(time.monotonic())
    alarm.close()


def test_alarm_that_was_never_set_has_no_thread():
    before = threading.active_count()
    alarm = Alarm(lambda: None)
    assert threading.active_count() == before
    alarm.close()


def test_a_missing_thread_is_an_error(monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    alarm = Alarm(lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(HostError, match=r"no thread for the pace.*ulimit"):
            alarm.set(time.monotonic())
    alarm.close()
