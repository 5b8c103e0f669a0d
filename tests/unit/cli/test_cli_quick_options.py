"""The quick way to parse a command line gives the same result as argparse."""

import pytest
from effort import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pykvm.cli.boot.options import OPTIONS, parser
from pykvm.cli.quick_options import Options, parse_options, parse_plainly
from pykvm.errors import UsageError

NAMES = [name for option in OPTIONS for name in option.names if name.startswith("-")]
VALUES = ["", "x", "a=b", "auto", "on", "-", "-x", "--", "64M", "two words", "é"]

words = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).map(lambda name: name[:-1]),
    st.sampled_from(VALUES),
    st.builds("{}={}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)),
    st.builds("{}{}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)),
    st.text(max_size=4),
)


def by_argparse(arguments: list[str]) -> Options | None:
    """What argparse makes of them, or None if it refuses or prints help."""
    try:
        return parser().parse_args(arguments, Options())
    except (UsageError, SystemExit):
        return None


@settings(max_examples=examples(500))
@given(st.lists(words, max_size=6))
def test_plain_parsing_and_argparse_agree(arguments: list[str]) -> None:
    # argparse takes these two hyphens for the end of options, even there.
    assume(not any(word.endswith("=--") for word in arguments))
    options = parse_plainly(OPTIONS, arguments)
    if options is not None:
        assert options == by_argparse(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["guest"],
        ["guest", "--exec", "uname -a", "--timeout=5"],
        ["--kernel", "k", "--append", "a b", "--append=c", "-m", "64M"],
        ["--disk", "d.img,readonly=on", "--disk=e.img", "guest", "--json", "--timings"],
        ["--console-log", "log", "--sandbox", "off", "--memory=1G"],
    ],
)
def test_ordinary_command_lines_need_no_argparse(arguments: list[str]) -> None:
    options = parse_plainly(OPTIONS, arguments)
    assert options is not None
    assert options == by_argparse(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--stats", "-"],
        ["-m64M"],
        ["a", "b"],
        ["--json=1"],
        ["--sandbox", "maybe"],
        ["--kernel", ""],
        ["--kernel"],
        ["--kernel", "--json"],
        ["--", "guest"],
        ["--kern", "k"],
    ],
)
def test_argparse_parses_command_lines_that_are_not_plain(arguments: list[str]) -> None:
    assert parse_plainly(OPTIONS, arguments) is None


def test_both_ways_lead_to_the_same_options() -> None:
    plain = parse_options(OPTIONS, ["guest", "--json", "--console-log", "log"], parser)
    other = parse_options(OPTIONS, ["--json", "--console-log=log", "--", "guest"], parser)
    assert plain == other
    assert plain.console_log == "log"
    with pytest.raises(UsageError, match="maybe"):
        parse_options(OPTIONS, ["--sandbox", "maybe"], parser)
