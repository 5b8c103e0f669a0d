"""Entry point of the command line: subcommands, and errors as one sentence each."""

import errno
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from pykvm import __version__
from pykvm.cli.say import emit, say
from pykvm.errors import PykvmError, UsageError, error_text, shown
from pykvm.host.limits import FILES, SIZES, advice, thread_advice

_EXHAUSTED = {
    errno.EMFILE: FILES,
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.ENOMEM: "free some memory, or give the guest less with -m",
    errno.EFBIG: SIZES,
}
"""The advice for each error that says that the host has run out of a resource."""


COMMANDS = {
    "boot": ("boot.run", "boot a guest, with a shell or to run one command"),
    "bench": ("bench.run", "measure a disk, and compare it with QEMU or fio"),
    "trace": ("trace", "summarize or draw a trace of 'pykvm boot --trace'"),
    "cache": ("cache", "list or remove the templates from which guests start"),
    "snapshot": ("snapshot.run", "save, restore, show or check the snapshot of a guest"),
    "crash": ("crash", "try the power cuts that a recording of a disk's writes allows"),
    "doctor": ("doctor.run", "show whether this host can run guests, and how well"),
}
"""Each command's module, which has its function (``run_boot`` and so on), and its line of help."""


def main(argv: Sequence[str] | None = None, *, own_process: bool = False) -> int:
    """Run ``pykvm`` with ``argv`` (default: the process's) and return its exit status.

    ``own_process``: the process ends afterwards, so the sandbox may confine it permanently.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments[:1] or os.environ.get("PYKVM_DEBUG") == "1"
    if arguments[:1] == ["--debug"]:
        del arguments[0]
    try:
        return _dispatch(arguments, own_process)
    except BrokenPipeError:
        # The reader of our output is gone: end without a message, as SIGPIPE would.
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            sys.excepthook(type(error), error, error.__traceback__)
        known = _as_pykvm_error(error)
        say(shown(str(known)))
        return known.exit_status


def _as_pykvm_error(error: Exception) -> PykvmError:
    if isinstance(error, PykvmError):
        return error
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("pykvm"):
        return PykvmError(
            f"this Python lacks the module '{error.name}'",
            "in a checkout, run 'make guest' once, then '. .venv/bin/activate'; "
            "elsewhere, install pykvm with pip",
        )
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if isinstance(error, ImportError) and os.strerror(errno.EMFILE) in str(error):
        number = errno.EMFILE  # The loader of shared libraries reports it only in the text.
    if number in _EXHAUSTED:
        return PykvmError(error_text(number), advice(number, _EXHAUSTED[number]))
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return PykvmError("the host has no more threads", thread_advice())
    return PykvmError(
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug in pykvm: run 'pykvm --debug …' for the traceback and report it",
    )


def _dispatch(arguments: list[str], own_process: bool) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        emit(_usage())
        return 0
    if command in ("-V", "--version"):
        emit(f"pykvm {__version__}\n")
        return 0
    if command in COMMANDS:
        # A command is imported only when it runs, because start-up time counts.
        module, _ = COMMANDS[command]
        run = getattr(import_module(f"pykvm.cli.{module}"), f"run_{command}")
        if own_process:
            # Imported modules stay until the end: the garbage collector need not scan them.
            gc.freeze()
            gc.enable()
        confinable = {"own_process": own_process} if command in ("boot", "snapshot") else {}
        status: int = run(arguments[1:], **confinable)
        return status
    from pykvm.suggest import did_you_mean

    hint = did_you_mean(command, COMMANDS, "see 'pykvm --help'")
    if command == "guest":
        hint = "try 'pykvm boot guest'"
    raise UsageError(f"there is no command '{command}'", hint)


def _usage() -> str:
    commands = "\n".join(f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: pykvm [--debug] COMMAND …      (or: python -m pykvm …)\n\n"
        "A small hypervisor in Python, with a virtio-blk disk.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  --help     show this text; 'pykvm COMMAND --help' lists a command's options\n"
        "  --version  show pykvm's version\n"
        "  --debug    show the traceback of an error; write it before COMMAND\n"
    )
