"""The library's guest, with a real Linux."""

import signal

import pytest
from patience import ends, in_thread, linux_patience

import pykvm

pytestmark = [pytest.mark.kvm, pytest.mark.linux]


@pytest.fixture(scope="module")
def guest():
    """One guest for all tests that leave it as it was."""
    with pykvm.boot(disks=[], timeout=linux_patience()) as guest:
        yield guest


def test_a_command_and_its_result(guest: pykvm.Guest) -> None:
    result = guest.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert result.seconds > 0


def test_arguments_are_not_for_a_shell(guest: pykvm.Guest) -> None:
    assert guest.run(["echo", "$HOME  x", "*"]).text == "$HOME  x *"


def test_environment_folder_and_input(guest: pykvm.Guest) -> None:
    command = "echo $A; pwd; cat; echo $PATH | grep -c /bin"
    result = guest.run(command, env={"A": "1 2"}, cwd="/tmp", input=b"in\n")
    assert result.text.splitlines() == ["1 2", "/tmp", "in", "1"]


def test_a_failure_raises(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.CommandFailed, match="No such file") as failed:
        guest.run("ls /nowhere")
    assert failed.value.result.status == 1


def test_a_signal(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.CommandFailed) as failed:
        guest.run("kill -9 $$")
    assert (failed.value.result.signal, failed.value.result.status) == (signal.SIGKILL, 137)


def test_a_command_that_takes_too_long_is_killed_and_the_guest_goes_on(guest: pykvm.Guest) -> None:
    with pytest.raises(pykvm.GuestTimeout):
        guest.run("echo $$ > /tmp/pid; sleep 1000", timeout=1)
    guest.run("while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done")


def test_lines_of_a_running_command_and_its_input(guest: pykvm.Guest) -> None:
    with guest.popen("while read line; do echo got $line; done; exit 2") as process:
        process.stdin.write(b"one\n")
        assert process.stdout.readline() == b"got one\n"
        process.stdin.write(b"two\n")
        assert process.stdout.readline() == b"got two\n"
        process.stdin.close()
        assert process.wait(check=False).status == 2


def test_a_guest_without_an_agent_has_a_console() -> None:
    with pykvm.boot(
        kernel=pykvm_kernel(), disks=[], append="root=/none", timeout=linux_patience()
    ) as guest:
        assert guest.console.wait_for(r"Linux version (\S+)").group(1)
        with pytest.raises(pykvm.UsageError, match="has no agent"):
            guest.run("true")
        outcome = guest.wait()
        assert outcome.kind is pykvm.OutcomeKind.PANIC
        assert "Kernel panic - not syncing: VFS" in guest.console.text


def pykvm_kernel() -> str:
    """The bundled guest's kernel, as a file of the user's own."""
    from pykvm.kvm.probe_cache import host_traits
    from pykvm.kvm.system import Kvm
    from pykvm.machine.bundle import find_bundle

    with Kvm.open() as kvm:
        flavour = "emulated" if host_traits(kvm).needs_assists else "native"
    return str(find_bundle("guest", flavour).kernel)


def test_a_panic_ends_every_call_at_once_with_the_console(guest: pykvm.Guest) -> None:
    """The last test of this guest."""
    errors = []

    def wait() -> None:
        try:
            guest.console.wait_for("never")
        except pykvm.GuestDied as error:
            errors.append(error)

    thread = in_thread(wait)
    with pytest.raises(pykvm.GuestDied) as died:
        guest.run("echo c > /proc/sysrq-trigger; sleep 1000")
    assert died.value.outcome.kind is pykvm.OutcomeKind.PANIC
    assert "sysrq triggered crash" in str(died.value)
    assert "sysrq: Trigger a crash" in died.value.console
    assert ends(thread)
    assert errors[0].outcome == died.value.outcome
