"""Suggestions for mistyped words: a wrong suggestion is worse than none."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.boot.foreign import _HINTS, hint_for
from pykvm.cli.boot.options import OPTIONS, parser
from pykvm.errors import UsageError
from pykvm.suggest import closest, did_you_mean

LONG = [name for option in OPTIONS for name in option.names if name.startswith("--")]
ERRNOS = list(errno.errorcode.values())


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("--dsk", LONG, "--disk"),
        ("--diks", LONG, "--disk"),
        ("--Disk", LONG, "--disk"),
        ("-disk", LONG, "--disk"),
        ("--console", LONG, "--console-log"),
        ("--cpu-afinity", LONG, "--cpu-affinity"),
        ("eio", ERRNOS, "EIO"),
        ("EOI", ERRNOS, "EIO"),
        ("ENOSPACE", ERRNOS, "ENOSPC"),
        ("EFOO", ERRNOS, ""),
        ("--net", LONG, ""),
        ("--root", LONG, ""),
        ("--zzz", LONG, ""),
        ("-x", ["--y", "--z"], ""),
        ("", LONG, ""),
        ("--", LONG, ""),
        ("x" * 100_000, LONG, ""),
        ("word", [], ""),
    ],
)
def test_only_a_near_word_is_suggested(word: str, known: list[str], meant: str) -> None:
    assert closest(word, known) == meant


def test_the_hint_is_a_question_or_the_other_advice() -> None:
    assert did_you_mean("--dsk", LONG, "see --help") == "did you mean --disk?"
    assert did_you_mean("EOI", ERRNOS, "see --help") == "did you mean 'EIO'?"
    assert did_you_mean("EFOO", ERRNOS, "see --help") == "see --help"


@given(st.text(), st.lists(st.text(min_size=1), max_size=5))
def test_a_suggestion_is_one_of_the_known_words(word: str, known: list[str]) -> None:
    assert closest(word, known) in ["", *known]
    for one in known:
        plain = one.lstrip("-")
        if plain and plain.lower() == plain and known.count(one) == 1:
            assert closest(one, [one]) == one


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-nographic"], "--console-log FILE"),
        (["-smp", "4"], "use --cpus N"),
        (["-drive", "file=x.img,if=virtio"], "use --disk PATH"),
        (["-machine", "q35"], "one kind of machine"),
        (["-M", "q35"], "one kind of machine"),
        (["-monitor", "stdio"], "use --monitor PATH"),
        (["-append", "quiet"], "use --append STR"),
        (["-s"], "debugger"),
        (["-S"], "Ctrl-a s"),
        (["-enable-kvm"], "pykvm always uses KVM"),
        (["--root=/dev/vda"], "--append root=/dev/vda"),
        (["--net", "none"], "pykvm has no network"),
        (["-mem", "1G"], "use -m SIZE"),
        (["--cmdline", "quiet"], "use --append STR"),
    ],
)
def test_options_of_other_programs_are_answered_with_pykvms(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError, match="unknown option") as caught:
        parser().parse_args(["guest", *words])
    assert words[0] in caught.value.message
    assert hint in caught.value.hint


def test_no_option_of_pykvm_is_taken_for_a_foreign_one() -> None:
    for option in OPTIONS:
        for name in option.names:
            if name.startswith("-") and not option.is_switch and not option.choices:
                parser().parse_args(["guest", f"{name}=1" if name != "-m" else "-m1"])


def test_each_option_that_a_hint_names_exists() -> None:
    for hint in _HINTS.values():
        for word in hint.replace(",", " ").split():
            assert not word.startswith("--") or word in (*LONG, "--debug")
    assert hint_for("nographic") == ""
