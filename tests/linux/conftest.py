"""The bundled Linux guest, booted by the command line as a user would."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from patience import linux_patience

from pykvm.machine.bundle import BUNDLES

Boot = Callable[..., "subprocess.CompletedProcess[bytes]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the guest, its tests are skipped with the reason, or fail where they must run."""
    if (BUNDLES / "guest" / "bundle.json").exists():
        return
    reason = "the bundled guest is not built: run 'make guest'"
    wanting = [item for item in items if item.get_closest_marker("linux")]
    if wanting and os.environ.get("PYKVM_REQUIRE_KVM") == "1":
        raise pytest.UsageError(reason)
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def boot() -> Boot:
    """Run ``pykvm boot guest`` with more arguments to its end.

    ``stdin`` is what to feed, or an open descriptor. ``check`` demands an
    exit status; None accepts any.
    """

    def run(
        *arguments: str, stdin: bytes | int = b"", check: int | None = 0
    ) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "pykvm", "boot", "guest"]
        command += ["--timeout", str(linux_patience())]
        given = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
        done = subprocess.run(
            [*command, *arguments],
            **given,
            capture_output=True,
            check=False,
            timeout=linux_patience(170),
        )
        assert b"Traceback" not in done.stderr
        assert check is None or done.returncode == check, done
        return done

    return run
