"""A request to the agent, from what a program gave. Checks that, and names what is wrong."""

import os
from collections.abc import Mapping

from pykvm.agent.protocol import RunRequest
from pykvm.forms import refused, text
from pykvm.guest.result import Command


def run_request(
    command: Command,
    env: Mapping[str, str] | None,
    cwd: str | None,
    *,
    stdin: bool,
    manual_credit: bool,
) -> RunRequest:
    """The request to run ``command``. See :meth:`Guest.run` and RunRequest. UsageError."""
    return RunRequest(
        command=_command(command),
        env=_variables(env),
        cwd=os.fsencode(text("cwd", cwd)) if cwd else b"",
        stdin=stdin,
        manual_credit=manual_credit,
    )


def _command(command: Command) -> bytes | tuple[bytes, ...]:
    if isinstance(command, str | bytes):
        return os.fsencode(command)
    words = command if isinstance(command, list | tuple) else ()
    if words and all(isinstance(word, str | bytes) for word in words):
        return tuple(os.fsencode(word) for word in words)
    raise refused("command", command, "give a line for the shell, or a list of arguments")


def _variables(env: Mapping[str, str] | None) -> tuple[tuple[bytes, bytes], ...]:
    if env is None:
        return ()
    if isinstance(env, Mapping) and all(
        isinstance(name, str) and isinstance(value, str) and name and "=" not in name
        for name, value in env.items()
    ):
        return tuple((os.fsencode(name), os.fsencode(value)) for name, value in env.items())
    raise refused("env", env, "give a mapping of names to values, all of them strings")
