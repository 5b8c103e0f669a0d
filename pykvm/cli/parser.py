"""How a command's options are parsed, and what its mistakes look like."""

import argparse
from functools import partial
from typing import Any, NoReturn

from pykvm.cli.say import emit
from pykvm.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UsageErrors, with the nearest option named."""

    def __init__(
        self, *, formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter, **rest: Any
    ) -> None:
        # A formatter is made for each option that is added. Without a width it looks for the
        # terminal's, with a module that takes longer to import than all options to parse.
        super().__init__(formatter_class=partial(formatter_class, width=80), **rest)
        self._formatter_of_help = formatter_class

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving."""
        hint = f"'{self.prog} --help' lists what there is"
        if message.endswith("expected one argument"):
            hint = "a value that begins with '-' is written after '=': --OPTION=VALUE"
        raise UsageError(message, hint)

    def print_help(self, file: object = None) -> None:
        """Print it where a failure to do so is noticed."""
        self.formatter_class = self._formatter_of_help
        emit(self.format_help())

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse, and say what an unknown option may have meant."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            import difflib

            close = difflib.get_close_matches(word.split("=")[0], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see '{self.prog} --help'"
            kind = "option" if word.startswith("-") else "argument"
            raise UsageError(f"unknown {kind} '{word}'", hint)
        return parsed
