"""How a command's options are parsed, and what its mistakes look like."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from pykvm.cli.say import emit
from pykvm.errors import UsageError
from pykvm.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are UsageErrors, with the nearest option named."""

    def __init__(
        self,
        *,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
        hint_for: Callable[[str], str] = lambda word: "",
        **rest: Any,
    ) -> None:
        """``hint_for`` says what to use instead of an option that is not known, or ""."""
        # A formatter is made for each option that is added. Without a width it looks for the
        # terminal's, with a module that takes longer to import than all options to parse.
        super().__init__(formatter_class=partial(formatter_class, width=80), **rest)
        self._formatter_of_help = formatter_class
        self._hint_for = hint_for

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving."""
        hint = f"'{self.prog} --help' lists what there is"
        if message.endswith("expected one argument"):
            hint = "a value that begins with '-' is written after '=': --OPTION=VALUE"
        # argparse quotes values as Python does: a byte that is no UTF-8 is half a surrogate pair.
        raise UsageError(re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", message), hint)

    def print_help(self, file: object = None) -> None:
        """Print it where a failure to do so is noticed."""
        self.formatter_class = self._formatter_of_help
        emit(self.format_help())

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse, and say what an unknown option may have meant."""
        for word in args or ():
            if word == "--":
                break
            # Else -machine would be -m with the value 'achine'.
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
        """What to use instead of ``word``, if it is another program's option and none of ours."""
        return "" if word in self._option_string_actions else self._hint_for(word)
