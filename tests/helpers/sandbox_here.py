"""Whether this host can confine processes."""

from pykvm.errors import HostError
from pykvm.sandbox import landlock, seccomp


def sandbox_problem() -> str:
    """Why this host cannot confine a process fully, or ""."""
    try:
        seccomp.check()
        landlock.version()
    except HostError as error:
        return error.message
    return ""
