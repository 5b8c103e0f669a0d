"""Names that a package offers and imports only when they are first used (PEP 562)."""

import sys

TYPE_CHECKING = False  # not from typing_names: ``import pykvm`` imports this module alone
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(
    package: str, homes: "Mapping[str, str]"
) -> "tuple[Callable[[str], object], Callable[[], list[str]]]":
    """The ``__getattr__`` and the ``__dir__`` of the module ``package``.

    ``homes`` maps the full name of a module to the names that ``package`` offers from it,
    separated by blanks.
    """
    places = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in places:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message, name=name, obj=sys.modules[package])
        from importlib import import_module

        return getattr(import_module(places[name]), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names
