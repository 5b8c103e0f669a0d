"""An argparse parser whose errors have pykvm's form."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from pykvm.cli.say import emit
from pykvm.errors import UsageError
from pykvm.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, and names the nearest option for an unknown one."""

    def __init__(
        self,
        *,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
        hint_for: Callable[[str], str] = lambda word: "",
        **rest: Any,
    ) -> None:
        """``hint_for`` gives the replacement for an unknown option, or ""."""
        # argparse creates a formatter for each added option. Without a width, the formatter
        # imports a module to find the terminal's, which takes longer than parsing all options.
        super().__init__(formatter_class=partial(formatter_class, width=80), **rest)
        self._formatter_of_help = formatter_class
        self._hint_for = hint_for

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving."""
        hint = f"'{self.prog} --help' lists the options"
        if message.endswith("expected one argument"):
            hint = "write a value that begins with '-' after '=': --OPTION=VALUE"
        # argparse quotes values with repr(), which shows a byte that is not UTF-8 as \udcNN.
        raise UsageError(re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", message), hint)

    def print_help(self, file: object = None) -> None:
        """Print the help by ``emit``, which reports a failure to print."""
        self.formatter_class = self._formatter_of_help
        emit(self.format_help())

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse ``args``; UsageError, with the nearest known option for an unknown one."""
        for word in args or ():
            if word == "--":
                break
            # Without this check, -machine would be -m with the value 'achine'.
            if self._foreign(word.partition("=")[0]):
                raise UsageError(f"unknown option '{word}'", self._foreign(word))
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            hint = did_you_mean(word.partition("=")[0], known, f"see '{self.prog} --help'")
            kind = "option" if word.startswith("-") else "argument"
            raise UsageError(f"unknown {kind} '{word}'", hint)
        return parsed

    def _foreign(self, word: str) -> str:
        """The replacement for ``word`` if it is an option of another program but not of pykvm."""
        return "" if word in self._option_string_actions else self._hint_for(word)
