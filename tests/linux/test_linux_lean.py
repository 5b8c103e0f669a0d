"""The imports of a start from a template: they are a good part of its time."""

import subprocess
import sys

import pytest
from patience import linux_patience

pytestmark = [pytest.mark.kvm, pytest.mark.linux]

HEAVY = {"argparse", "asyncio", "base64", "cffi", "ctypes", "dataclasses", "inspect", "shutil"}
HEAVY |= {"subprocess", "tempfile", "termios", "traceback", "typing"}


def test_a_start_from_a_template_needs_no_module_that_takes_long_to_import():
    script = """
import os, sys
from pykvm.cli.main import main
command = ["boot", "guest", "--exec", "true", "--timeout", sys.argv[2]]
assert main(command) == 0  # makes the template, if there is none
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    again = """
import sys
from pykvm.cli.main import main
status = main(["boot", "guest", "--exec", "true"])
print(status, *sorted(sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, again, str(linux_patience())],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=linux_patience(170),
    )
    status, *modules = done.stderr.splitlines()[-1].split()
    assert status == "0"
    assert "pykvm.templates.start" in modules
    assert not set(modules) & HEAVY
    for name in ("devices", "templates.build", "templates.upkeep", "x86.payload", "memory.changed"):
        assert f"pykvm.{name}" not in modules
