"""The options of a command as a table, and the quick way to parse a plain command line.

``argparse`` knows every way to write an option, reports mistakes and formats help, but importing
and using it takes longer than creating a VM. So a command whose start-up time counts describes its
options in a table. If every word of a command line is plainly an option of the table, an option's
value or the only argument, this module parses it. argparse parses every other command line, from
the same table. ``tests/unit/cli/test_cli_quick_options.py`` checks that both give the same result.
"""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace

from pykvm.lean.records import record
from pykvm.lean.typing_names import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser


class Options(SimpleNamespace):
    """The values of a command line: an attribute for each option."""


@record
class Option:
    """An option that begins with hyphens, or an optional positional argument.

    ``names`` are its spellings. ``dest``, or else the last spelling, names the attribute. An
    option without ``metavar`` and ``choices`` takes no value and is True or False. ``repeated``:
    the attribute is a list of all given values. ``parse`` turns the text of a value into the
    attribute's value.
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
        """True if its place on the command line, not a name, tells what it is."""
        return not self.names[0].startswith("-")

    @property
    def is_switch(self) -> bool:
        """True if it takes no value."""
        return not self.metavar and not self.choices

    @property
    def initially(self) -> Any:
        """The attribute's value without the option on the command line."""
        if self.repeated:
            return []
        return False if self.is_switch else self.default


def parse_options(
    table: Sequence[Option], arguments: Sequence[str], parser: "Callable[[], ArgumentParser]"
) -> Options:
    """The values of the options in ``table`` that ``arguments`` give; UsageError.

    ``parser`` is called if argparse is needed. It returns a parser to which :func:`add_options`
    has added the table.
    """
    options = parse_plainly(table, arguments)
    if options is None:
        options = Options()
        parser().parse_args(arguments, options)
    return options


def parse_plainly(table: Iterable[Option], arguments: Sequence[str]) -> Options | None:
    """The values that ``arguments`` give, or None if only argparse can parse them."""
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
            return None  # argparse meets the same error, and names the option.
        if option.repeated:
            state[option.attribute].append(value)
        else:
            state[option.attribute] = value
    return Options(**state)


def add_options(parser: "ArgumentParser", table: Iterable[Option]) -> None:
    """Add the options of ``table`` to ``parser``."""
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
