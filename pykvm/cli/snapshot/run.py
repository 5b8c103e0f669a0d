"""``pykvm snapshot``: saves, shows, checks and restores guests."""

import os
from collections.abc import Sequence

from pykvm.cli.boot.options import GUEST_OPTIONS, RUN_OPTIONS
from pykvm.cli.paths import path_text
from pykvm.cli.quick_options import Option, Options, add_options
from pykvm.cli.say import emit
from pykvm.cli.values import parse_seconds
from pykvm.errors import UsageError, shown
from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

_FOLDER = Option(("folder",), "the snapshot", "DIR", parse=path_text)
_JSON = Option(("--json",), "print one JSON object")
_ACTIONS = {
    "save": "have a running 'pykvm boot --monitor SOCKET' save its guest in the new folder DIR",
    "restore": "run the guest that DIR holds, as 'pykvm boot' would",
    "info": "show what DIR holds, and whether it can be restored here",
    "verify": "read all of DIR, and compare it with what was written",
}


def run_snapshot(arguments: Sequence[str], own_process: bool = False) -> int:
    """Run ``pykvm snapshot`` and return the exit status."""
    action, *rest = arguments or ["--help"]
    if action in ("-h", "--help"):
        emit(_usage())
        return 0
    if action == "restore":
        from pykvm.cli.snapshot.restore import run_restore

        return run_restore(rest, own_process)
    if action == "save":
        return _save(rest)
    if action == "info":
        return _info(rest)
    if action == "verify":
        from pykvm.cli.snapshot.info import verify

        options = _parse(action, (_FOLDER, _JSON), rest)
        return verify(_given(options), options.json)
    from pykvm.suggest import did_you_mean

    raise UsageError(
        f"pykvm snapshot has no action '{shown(action)}'",
        did_you_mean(action, _ACTIONS, "see 'pykvm snapshot --help'"),
    )


def _save(arguments: Sequence[str]) -> int:
    table = (
        Option(("socket",), "the monitor of a running pykvm", "SOCKET", parse=path_text),
        _FOLDER,
        Option(("--timeout",), "wait at most S seconds (default: 120)", "S", "120"),
    )
    options = _parse("save", table, arguments)
    if options.socket is None:
        raise UsageError("there is no monitor to ask", "write: pykvm snapshot save SOCKET DIR")
    # A relative path means something else to a pykvm that was started in a different folder.
    folder = os.path.abspath(_given(options))
    from pykvm.cli.snapshot.save import save

    save(options.socket, folder, parse_seconds(options.timeout))
    emit(f"the guest is saved in {shown(folder)}\n")
    return 0


def _info(arguments: Sequence[str]) -> int:
    from pykvm.cli.snapshot.info import show_info
    from pykvm.cli.snapshot.restore import fitting

    disks = [option for option in RUN_OPTIONS if option.attribute == "disk"]
    options = _parse("info", (_FOLDER, *GUEST_OPTIONS, *disks, _JSON), arguments)
    folder = _given(options)
    return show_info(folder, fitting(options, folder), options.json)


def _given(options: Options) -> str:
    if options.folder is None:
        raise UsageError("there is no snapshot named", "give its folder")
    folder: str = options.folder
    return folder


def _parse(action: str, table: Sequence[Option], arguments: Sequence[str]) -> Options:
    from pykvm.cli.parser import Parser

    parser: ArgumentParser = Parser(
        prog=f"pykvm snapshot {action}", description=_ACTIONS[action], allow_abbrev=False
    )
    add_options(parser, table)
    # A configuration is made of the options of a run, too.
    options = Options(**{one.attribute: one.initially for one in (*RUN_OPTIONS, *table)})
    parser.parse_args(arguments, options)
    return options


def _usage() -> str:
    actions = "\n".join(f"  {name:<8} {text}" for name, text in _ACTIONS.items())
    return (
        "usage: pykvm snapshot save SOCKET DIR\n"
        "       pykvm snapshot restore DIR [GUEST] [options]\n"
        "       pykvm snapshot info|verify DIR [options]\n\n"
        f"{actions}\n\n'pykvm snapshot ACTION --help' lists the options of each.\n"
    )
