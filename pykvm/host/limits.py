"""Resource limits of a process (setrlimit(2)): what they make fail, and what helps."""

import errno

from pykvm.lean.typing_names import Final

THREADS: Final = "raise the limit of processes and threads (ulimit -u, or pids.max of the cgroup)"
FILES: Final = "raise the limit of open files (ulimit -n)"
_LARGE: Final = 1 << 30
SIZES: Final = "raise the limit of the size of files (ulimit -f)"


def memory_advice(otherwise: str) -> str:
    """What helps where memory cannot be mapped: a limit that is set, or ``otherwise``."""
    limits = _limits()
    found = [f"ulimit -{letter}" for letter in "vd" if letter in limits]
    return f"raise the limit of memory ({', '.join(found)})" if found else otherwise


def thread_advice() -> str:
    """What helps where no thread can be started."""
    limits = _limits()
    if not limits:
        return f"{THREADS}, or of memory (ulimit -v, -d); a large 'ulimit -s' makes threads costly"
    if (stack := limits.get("s", 0)) > _LARGE:
        return f"each thread gets a stack of {stack >> 20} MiB: lower that limit (ulimit -s)"
    return memory_advice(THREADS)


def _limits() -> dict[str, int]:
    """Those that are set, by their letters; none if a sandbox does not let this process ask."""
    # Needed in failures only.
    try:
        import resource

        kinds = {"v": resource.RLIMIT_AS, "d": resource.RLIMIT_DATA, "s": resource.RLIMIT_STACK}
        found = {letter: resource.getrlimit(kind)[0] for letter, kind in kinds.items()}
    except (ImportError, OSError):
        return {}
    return {letter: most for letter, most in found.items() if most != resource.RLIM_INFINITY}


def advice(number: int, otherwise: str = "") -> str:
    """What helps against the error ``number`` (an errno), if a limit may be behind it."""
    if number == errno.EMFILE:
        return FILES
    if number == errno.EFBIG:
        return SIZES
    return memory_advice(otherwise) if number == errno.ENOMEM else otherwise
