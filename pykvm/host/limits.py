"""Advice for failures that resource limits cause (setrlimit(2))."""

import errno

from pykvm.lean.typing_names import Final

THREADS: Final = "raise the limit of processes and threads (ulimit -u, or pids.max of the cgroup)"
FILES: Final = "raise the limit of open files (ulimit -n)"
_LARGE: Final = 1 << 30
SIZES: Final = "raise the limit of the size of files (ulimit -f)"


def memory_advice(otherwise: str) -> str:
    """The hint if memory cannot be mapped: raise the limits that are set, or ``otherwise``."""
    limits = _limits()
    found = [f"ulimit -{letter}" for letter in "vd" if letter in limits]
    return f"raise the limit of memory ({', '.join(found)})" if found else otherwise


def thread_advice() -> str:
    """The hint if no thread can be started."""
    limits = _limits()
    if not limits:
        return f"{THREADS}, or of memory (ulimit -v, -d); a large 'ulimit -s' makes threads costly"
    if (stack := limits.get("s", 0)) > _LARGE:
        return f"each thread gets a stack of {stack >> 20} MiB: lower that limit (ulimit -s)"
    return memory_advice(THREADS)


def _limits() -> dict[str, int]:
    """The limits that are set, by their letters; none if a sandbox forbids the question."""
    # Only failures need it.
    try:
        import resource

        kinds = {"v": resource.RLIMIT_AS, "d": resource.RLIMIT_DATA, "s": resource.RLIMIT_STACK}
        found = {letter: resource.getrlimit(kind)[0] for letter, kind in kinds.items()}
    except (ImportError, OSError):
        return {}
    return {letter: most for letter, most in found.items() if most != resource.RLIM_INFINITY}


def advice(number: int, otherwise: str = "") -> str:
    """The hint for the errno ``number`` if a limit can cause it, else ``otherwise``."""
    if number == errno.EMFILE:
        return FILES
    if number == errno.EFBIG:
        return SIZES
    return memory_advice(otherwise) if number == errno.ENOMEM else otherwise
