"""Limits in tests go by the host: none is a number of seconds."""

import ast
import os
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import patience
import pytest
from checkout import TESTS

WAITS = {"acquire", "communicate", "join", "paused", "settimeout", "wait"}
WAITS_FOR = {"expect", "wait_for"}
"""What is awaited comes first, and then the limit."""
SHORT = 2.0
"""Seconds. A test that has its limit run out does not wait longer."""


def number(node: ast.expr | None) -> float:
    """The value of a literal number; 0 for anything else."""
    literal = isinstance(node, ast.Constant) and isinstance(node.value, int | float | str)
    try:
        return float(node.value) if literal else 0.0
    except ValueError:
        return 0.0


def limits(tree: ast.Module) -> Iterator[tuple[int, float]]:
    """Lines with a limit that is a literal number, and the seconds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "timeout":
                    yield node.lineno, number(keyword.value)
            if isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
                yield node.lineno, number(node.args[0] if len(node.args) == 1 else None)
            if isinstance(node.func, ast.Attribute) and node.func.attr in WAITS_FOR:
                yield node.lineno, number(node.args[1] if len(node.args) == 2 else None)
        if isinstance(node, ast.Call | ast.List | ast.Tuple):
            parts = node.args if isinstance(node, ast.Call) else node.elts
            for option, value in pairwise(parts):
                if isinstance(option, ast.Constant) and option.value == "--timeout":
                    yield node.lineno, number(value)


def test_no_limit_is_a_number_of_seconds():
    found = [
        f"{path.relative_to(TESTS)}:{line}: {seconds:g} s, and not patience()"
        for path in sorted(TESTS.rglob("*.py"))
        for line, seconds in limits(ast.parse(path.read_text()))
        if seconds > SHORT
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "run(timeout=60)",
        "thread.join(5)",
        "terminal.expect(b'$', 20)",
        "boot('--timeout', '60')",
        "['--timeout', '7']",
    ],
)
def test_a_limit_is_found(code: str):
    assert max(seconds for _, seconds in limits(ast.parse(code))) > SHORT


def test_slow_and_crowded_hosts_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "python_slowness", lambda: 2.0)
    monkeypatch.setattr(patience, "linux_slowness", lambda: 3.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, crowd in ((0.5, 1), (2, 1), (8, 4)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert patience.patience(10) == 10 * 2 * crowd
        assert patience.linux_patience(10) == 10 * 3 * crowd
    monkeypatch.setattr(patience, "python_slowness", lambda: 1e9)
    assert patience.patience(10) == 10 * patience.MOST


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A session that has measured nothing yet."""
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path))


def test_a_host_is_never_too_slow_to_measure(session: None, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("boot", timeout)

    monkeypatch.setattr(subprocess, "run", never)
    assert patience.linux_slowness.__wrapped__() == 1.0


def test_one_process_measures_for_all(session: None, monkeypatch: pytest.MonkeyPatch):
    times = iter((12.0, 0.5))
    monkeypatch.setattr(patience, "_time", lambda work: next(times))
    assert [patience.linux_slowness.__wrapped__() for _ in range(3)] == [4.0, 4.0, 4.0]


def test_the_limit_of_a_test_is_stretched(request: pytest.FixtureRequest):
    if request.config.getoption("timeout") is not None:
        pytest.skip("--timeout says what the limit is")
    mark = request.node.get_closest_marker("timeout")
    base = float(request.config.getini("timeout"))
    assert mark.args[0] >= base * patience.python_slowness()
