"""Random drivers find nothing wrong with the disk, and whatever is wrong is found."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from checkout import ROOT
from patience import patience
from soak_mutants import MUTANTS

from soak.__main__ import PATIENCE, STEPS
from soak.run import play
from soak.scenario import SHAKEN, Host, choose
from soak.shake import PACKAGE

BLOCKS, BLOCK = 6, 12
"""Scenarios of each run, by their seeds; make soak has others."""
ENOUGH = "60"
"""Scenarios in which a mutant is found; mostly it is one of the first."""


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS), ids="seeds-{}".format)
def test_random_drivers_find_no_fault(block: int) -> None:
    host = Host.look()
    answered = 0
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        answered += play(choose(seed, host, STEPS), patience(PATIENCE))["answered"]
    assert answered > 1000, "the drivers do next to nothing"


@pytest.mark.interpreted
@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_found(mutant: str) -> None:
    run = soak(
        str(ROOT / "tests/helpers/soak_mutants.py"), mutant, "--runs", ENOUGH, "--patience", "1"
    )
    assert run.returncode == 1, run.stdout
    assert "FOUND SOMETHING" in run.stderr
    assert "thread MainThread:" in run.stderr, "the state of everything is shown"
    assert "again: python -m soak --seed " in run.stderr


def test_every_shaken_module_exists() -> None:
    assert [name for name in SHAKEN if find_spec(f"{PACKAGE}.{name}") is None] == []


def test_the_command_reports_its_events() -> None:
    run = soak("-m", "soak", "--runs", "2", "--steps", "10")
    assert run.returncode == 0, run.stderr
    assert "from seed 0 on" in run.stdout
    assert "2 scenarios" in run.stdout
    assert "nothing found" in run.stdout


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of Python from seed 0 on."""
    command = [sys.executable, *arguments, "--seed", "0"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=patience(170)
    )
