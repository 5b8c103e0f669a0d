"""The options of ``pykvm bench compare``."""

import pytest

from pykvm.cli.bench.compare.options import parser
from pykvm.cli.bench.compare.run import is_bare
from pykvm.errors import UsageError


@pytest.mark.parametrize(
    ("words", "emulated", "bare"),
    [
        ([], False, False),
        ([], True, True),
        (["--guest", "bare"], False, True),
        (["--guest", "guest", "--cpus", "2"], True, False),
        (["--kernel", "bzImage", "-m", "64M"], True, False),
        (["--load", "mine.fio", "--guest-merging", "off"], True, False),
    ],
)
def test_the_guest_that_sends_the_load(words: list[str], emulated: bool, bare: bool):
    assert is_bare(parser().parse_args(words), emulated) is bare


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--guest-merging", "off"], "--guest-merging"),
        (["--cpus", "2"], "--cpus"),
        (["-m", "64M"], "--memory"),
        (["--guest", "bare", "--kernel", "bzImage"], "--kernel"),
    ],
)
def test_the_bare_metal_guest_has_no_options_of_linux(words: list[str], option: str):
    with pytest.raises(UsageError, match=f"{option} is for a Linux guest.*--guest guest"):
        is_bare(parser().parse_args(words), True)


def test_the_bare_metal_guest_runs_no_job_of_fio():
    with pytest.raises(UsageError, match="has no load 'mine"):
        is_bare(parser().parse_args(["--guest", "bare", "--load", "mine.fio"]), True)
