"""The times of a run's steps."""

import time

from pykvm.machine.timings import Timings


def test_marks_are_seconds_since_the_process_began():
    timings = Timings()
    timings.mark("first")
    time.sleep(0.02)
    timings.mark("second")
    # This process is younger than a day.
    assert 0 < timings.marks["first"] < 86400
    assert timings.marks["second"] - timings.marks["first"] >= 0.02


def test_a_name_keeps_its_first_time():
    timings = Timings()
    timings.mark("a")
    at = timings.marks["a"]
    timings.mark("a")
    assert timings.marks == {"a": at}


def test_the_table_is_in_order_and_its_steps_add_up():
    timings = Timings()
    timings.marks.update({"late": 2.5, "early": 1.0})
    assert timings.table().splitlines()[1:] == [
        "     1.000    +1.000  early",
        "     2.500    +1.500  late",
    ]
