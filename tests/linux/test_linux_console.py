"""The last output on the Linux guest's console."""

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.linux]


def test_the_last_output_arrives_before_the_power_is_off(boot):
    """All of it fits in the kernel's buffer, which a second CPU may empty meanwhile."""
    script = b"head -c 4000 /dev/zero | tr '\\0' x >/f; dd if=/f bs=4000 count=1 2>/dev/null\n"
    assert boot("--cpus", "2", stdin=script).stdout == b"x" * 4000


def test_a_script_is_data(boot):
    """Whatever its bytes mean to a terminal, how long its lines are, and where it ends.

    Its end ends the shell, and so the run.
    """
    word = b"x" * 5000
    rest = b"second\n" + word + b"\n" + bytes(range(256)) + b"\nno newline"
    done = boot(stdin=b"read line\nfirst\necho $line " + word + b"; cat\n" + rest)
    assert done.stdout == b"first " + word + b"\n" + rest
