"""Runs of pytest with the plugin, and without a guest."""

import pytest
from patience import patience
from plugin_here import PLUGIN

pytest_plugins = ["pytester"]

NO_KVM = """
from pykvm.kvm.errors import KvmUnavailable
from pykvm.kvm.system import Kvm

def gone(path="/dev/kvm"):
    raise KvmUnavailable.from_open(path, 2)

Kvm.open = gone
"""
BOOT = """
import pytest

@pytest.mark.pykvm(kernel=__file__)
def test_a_kernel_boots(pykvm_machine):
    pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester):
    """A function that runs pytest in a process of its own, with these files."""

    def run(*arguments: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        options = (*PLUGIN, "-p", "no:cacheprovider", "--strict-markers", *arguments)
        return pytester.runpytest_subprocess(*options, timeout=patience(60))

    return run


def test_a_run_that_uses_no_fixture_imports_nothing_of_pykvm(run) -> None:
    result = run(
        conftest="""
            import sys
            def pytest_unconfigure():
                print("imported", *sorted(name for name in sys.modules if "pykvm" in name))
        """,
        test_it="def test_it(): pass",
    )
    result.assert_outcomes(passed=1)
    wanted = "pykvm pykvm.lean pykvm.lean.lazy pykvm.pytest_plugin pykvm.pytest_plugin.settings"
    result.stdout.fnmatch_lines([f"imported {wanted}"])


def test_without_kvm_a_test_is_skipped_with_the_reason(run) -> None:
    result = run("-rs", conftest=NO_KVM, test_it=BOOT)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * there is no /dev/kvm; *"])


def test_without_kvm_a_test_fails_if_the_project_says_so(run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npykvm_missing_kvm = fail\n")
    result = run(conftest=NO_KVM, test_it=BOOT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["there is no /dev/kvm; *"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pykvm_missing_kvm = pass", "pykvm_missing_kvm cannot be 'pass'; use skip or fail"),
        ("pykvm_memory = lots", "pykvm_memory cannot be 'lots'; give a number of bytes, or *"),
        ("pykvm_fail_on = oops pannic", "fail_on: * called 'pannic'; did you mean 'panic'[?]"),
    ],
)
def test_a_mistake_in_the_ini_file_is_one_sentence(
    run, pytester: pytest.Pytester, setting: str, message: str
) -> None:
    pytester.makeini(f"[pytest]\n{setting}\n")
    result = run(test_it=BOOT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str()


def test_the_marker_takes_keywords_only(run) -> None:
    result = run(test_it=BOOT.replace("kernel=__file__", "'bzImage'"))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the marker pykvm takes keywords only; such as *"])


def test_a_kernel_alone_has_no_snapshot(run) -> None:
    result = run(test_it=BOOT.replace("pykvm_machine", "pykvm_guest"))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["a kernel alone has no agent, *; use the fixture pykvm_machine*"])


def test_a_mistake_in_a_test_shows_the_test_only(run) -> None:
    result = run(test_it="def test_it(pykvm_factory): pykvm_factory(memory='zz')")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E *UsageError: memory cannot be 'zz'*", "test_it.py:1: UsageError"]
    )
    result.stdout.no_fnmatch_line("*/*.py:*")  # no frames of pykvm


WAITS = """
import pykvm.pytest_plugin.places as places

answers = iter([False] * 3)
places.PATIENCE_SECONDS = 0
places.Places._locked = lambda self, fd, wanted: next(answers, True)
"""


def test_a_wait_for_other_guests_is_told_at_once(run) -> None:
    result = run(conftest=WAITS, test_it=BOOT)
    result.stderr.fnmatch_lines(["pykvm: a guest waits for *pykvm_memory*"])


CRASH = """
def test_power_cuts(pykvm_crash):
    pykvm_crash.record(None, "true")
"""


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--pykvm-crash-states=0", "--pykvm-crash-states cannot be '0'"),
        ("--pykvm-crash-states=x", "--pykvm-crash-states cannot be 'x'"),
        ("--pykvm-crash-replay=x", "--pykvm-crash-replay cannot be 'x'"),
        ("--pykvm-crash-replay=x,y", "the log x/log cannot be read"),
    ],
)
def test_a_mistake_in_an_option_for_power_cuts_is_a_sentence(run, option, reason) -> None:
    result = run(option, test_it=CRASH)
    assert reason in result.stdout.str()
    assert result.ret == 1
