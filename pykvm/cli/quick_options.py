"""The options of a command as a table, and the quick way to parse a plain command line.

``argparse`` knows every way to write an option, what to say of mistakes, and
how to format help; to import and to use it takes longer than to create a VM.
So a command whose start counts describes its options in a table. A command
line in which every word is plainly an option of the table, the value of one or
the only argument is parsed with that. Whatever is not is left to argparse, for
which the same table is the parser: the result cannot be another one, and
``tests/unit/cli/test_cli_quick_options.py`` compares the two.
"""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

from pykvm.lean.records import record
from pykvm.lean.typing_names import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser


class Options(SimpleNamespace):
    """What a command line said: an attribute for each option."""


@record
class Option:
    """An option that begins with hyphens, or a positional argument that may be missing.

    ``names`` are its spellings, of which the last gives the attribute its name
    unless ``dest`` does. Without a ``metavar`` and ``choices`` it takes no value
    and is True or False. ``repeated``: values are collected in a list. ``parse``
    makes of the text what the attribute holds.
    """

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    default: Any = None
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    repeated: bool = False
    dest: str = ""

    @property
    def attribute(self) -> str:
        """The name of its attribute."""
        return self.dest or self.names[-1].lstrip("-").replace("-", "_")

    @property
    def positional(self) -> bool:
        """It is known by its place, not by a name."""
        return not self.names[0].startswith("-")

    @property
    def is_switch(self) -> bool:
        """It takes no value."""
        return not self.metavar and not self.choices

    @property
    def initially(self) -> Any:
        """The attribute if the command line does not say."""
        if self.repeated:
            return []
        return False if self.is_switch else self.default


def parse_options(
    table: Sequence[Option], arguments: Sequence[str], parser: "Callable[[], ArgumentParser]"
) -> Options:
    """What ``arguments`` say of the options in ``table``; UsageError.

    ``parser`` makes the argparse parser, to which :func:`add_options` has
    added the table, if that is needed.
    """
    options = parse_plainly(table, arguments)
    if options is None:
        options = Options()
        parser().parse_args(arguments, options)
    return options


def parse_plainly(table: Iterable[Option], arguments: Sequence[str]) -> Options | None:
    """What ``arguments`` say, or None if that takes more than looking words up in ``table``."""
    known = {name: option for option in table for name in option.names}
    places = [option for option in known.values() if option.positional]
    state = {option.attribute: option.initially for option in known.values()}
    words = iter(arguments)
    for word in words:
        name, equals, text = word.partition("=")
        if not word.startswith("-"):
            if not places:
                return None
            option, text = places.pop(0), word
        elif name not in known or (equals and not name.startswith("--")):
            return None
        else:
            option = known[name]
            if option.is_switch:
                if equals:
                    return None
                state[option.attribute] = True
                continue
            if not equals:
                text = next(words, "-")
                if text.startswith("-"):
                    return None
        if option.choices and text not in option.choices:
            return None
        try:
            value = option.parse(text) if option.parse else text
        except Exception:
            return None  # argparse meets the same, and tells of which option
        if option.repeated:
            state[option.attribute].append(value)
        else:
            state[option.attribute] = value
    return Options(**state)


def add_options(parser: "ArgumentParser", table: Iterable[Option]) -> None:
    """Have ``parser`` know the options of ``table``."""
    for option in table:
        more: dict[str, Any] = {"help": option.help}
        if option.positional:
            more |= {"nargs": "?", "metavar": option.metavar}
        elif option.is_switch:
            more |= {"action": "store_true", "dest": option.attribute}
        else:
            more |= {"default": option.initially, "dest": option.attribute}
            if option.metavar:
                more["metavar"] = option.metavar
            if option.choices:
                more["choices"] = option.choices
            if option.repeated:
                more["action"] = "append"
        if option.parse:
            more["type"] = option.parse
        parser.add_argument(*option.names, **more)
