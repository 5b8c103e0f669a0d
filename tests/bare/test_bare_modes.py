"""Each way to end a run, seen from the machine, with the fewest instructions."""

from threading import Event

import pytest
from patience import patience

from pykvm.bare import Script, build_bare_guest
from pykvm.bare.run import run_mode, run_script
from pykvm.machine import Machine, MachineConfig
from pykvm.machine.outcome import OutcomeKind

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    ("words", "kind", "status"),
    [
        ("exit 0", OutcomeKind.POWER_OFF, 0),
        ("exit 255", OutcomeKind.POWER_OFF, 255),
        ("reset", OutcomeKind.RESET, 0),
        ("halt", OutcomeKind.HALTED, 0),
        ("panic", OutcomeKind.PANIC, 126),
        ("triple", OutcomeKind.TRIPLE_FAULT, 126),
    ],
)
def test_each_end_has_its_own_outcome(words: str, kind: OutcomeKind, status: int):
    outcome = run_mode(words).outcome
    assert (outcome.kind, outcome.status) == (kind, status)


@pytest.mark.parametrize("words", ["spin", "idle"])
def test_a_guest_that_never_ends_times_out(words: str):
    # Idle is no halt: its interrupts are on, so something could still wake it.
    outcome = run_mode(words, timeout=1.2).outcome
    assert outcome.kind is OutcomeKind.TIMEOUT
    assert outcome.status == 124


def test_hello():
    run = run_mode("hello 3")
    assert run.console == b"hello from CPL3\n"
    assert run.outcome.status == 3


def test_an_exception_in_the_guest_is_its_exit_status():
    assert run_mode("fault").outcome.status == 0xE0 | 14


def test_without_a_script_there_is_nothing_to_run():
    assert run_mode("script").outcome.status == 0xD0


def test_a_script_can_print_and_leave():
    script = Script()
    script.print(b"byte by byte, ")
    script.print(b"and as one string\n", string=True)
    script.exit(42)
    script.print(b"never")
    run = run_script(script)
    assert run.console == b"byte by byte, and as one string\n"
    assert run.outcome.status == 42


def test_the_terminal_echoes_typed_keys():
    config = MachineConfig(kernel=build_bare_guest(), append="echo", memory=16 << 20)
    text = b"typed\n" * 20
    with Machine(config) as machine:
        machine.start()
        assert machine.board.console.feed(text + b"\x04")
        outcome = machine.wait(timeout=patience())
        assert outcome.status == 0
        assert machine.console_output == text


def test_a_console_that_nobody_reads_is_not_the_end():
    """A vCPU that waits for the console's reader cannot be paused to look at it."""
    reading = Event()
    config = MachineConfig(kernel=build_bare_guest(), append="hello 3", memory=16 << 20)
    with Machine(config, console=lambda data: reading.wait(patience())) as machine:
        machine.on_end = reading.set
        assert machine.run(timeout=1.2).kind is OutcomeKind.TIMEOUT
