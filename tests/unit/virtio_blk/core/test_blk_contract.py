"""The contract of planner, order and schedule: merging changes nothing that a driver can see.

Requests arrive in drains. The planner joins some, splits others, and leaves
the rest alone; the schedule hands out operations, which run in any order and
may fail, come short or be halted. For every policy, whatever happens:

1. **Once.** Each request is answered exactly once, nothing of it starts after
   its answer, and at the end nothing is left.
2. **The same bytes.** The disk, and what each successful read finds, are what
   they would be with the requests executed one at a time, in ring order. Each
   byte of a request is executed for good exactly once (after a halt: once
   since), and no other byte of guest memory is written. Left open, as by the
   specification: the sectors of a write that failed, until they are written
   again, and sectors that requests of different drains want at the same time,
   one of them a write, before either was answered.
3. **The true status.** A request fails if and only if an operation for it
   alone failed, with the errno that this one met first (EIO at the end of the
   file): a bad sector in a merged run fails nobody but the request that wants
   it. The error policy is asked once for each failure; then the status is
   OK for ignore, IOERR for report, and for stop there is none. (The used
   length follows from the status and the length.) All members of an operation
   have its direction, a flush is alone, and writes are as durable as asked for.
4. **Limits.** No operation has more members, segments or bytes than allowed.
5. **Order.** A flush starts after all writes queued before it, in its drain or
   in an earlier one, have been answered. Overlapping operations of one drain,
   one of them a write, never execute at the same time.
6. **Stop.** While halted nothing starts. What was not answered is planned anew
   at the resume, in ring order, and 1 to 5 hold for it as for a new drain.

blk_contract.py executes a script (blk_script.py) and checks these clauses. blk_mutants.py
holds broken planners, orders and schedules; the same property catches each.
"""

from collections import Counter

import pytest
from blk_contract import BrokenContractError, Run
from blk_mutants import MUTANTS, Mutant
from blk_script import Script, scripts
from effort import examples
from hypothesis import HealthCheck, Phase, given, settings

ONLY_FIND = settings(
    max_examples=3000,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@settings(max_examples=examples(1000), deadline=None)
@given(scripts())
def test_the_contract(script: Script) -> None:
    Run(script).run()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_contract_catches(mutant: Mutant) -> None:
    @ONLY_FIND
    @given(scripts(mutant.policy))
    def contract(script: Script) -> None:
        Run(script, mutant.planner, mutant.schedule).run()

    with pytest.raises(BrokenContractError):
        contract()


@pytest.mark.slow
def test_the_examples_reach_everything() -> None:
    """A property that nothing puts to the test would hold too."""
    seen: Counter[str] = Counter()

    @settings(ONLY_FIND, max_examples=300)
    @given(scripts())
    def explore(script: Script) -> None:
        run = Run(script)
        run.run()
        seen.update(run.seen.keys())

    explore()
    rare = {what: seen[what] for what in EVENTS if seen[what] < 10}
    assert not rare


EVENTS = (
    "merged",
    "split",
    "left",
    "waits",
    "failed",
    "failed merged",
    "short",
    "halt",
    "resume",
    "resumed requests",
    "action report",
    "action ignore",
    "action stop",
)
