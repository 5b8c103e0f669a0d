"""What modules of a start need of :mod:`typing`, without importing it.

Names that only type checkers read cost a start 3 ms, of which ``re`` is one, a
twelfth of the time to a guest's first instruction. Checkers see the real ones
here; at run time annotations get something that can be written in their places.
Modules that a boot without disks does not import have no need of it.
"""

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Final",
    "NoReturn",
    "Protocol",
    "Self",
    "TypeAlias",
    "TypeVar",
    "dataclass_transform",
]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, Protocol, Self, TypeAlias, TypeVar, dataclass_transform
else:

    class _Annotation:
        """Stands in an annotation, alone or with ``|``."""

        def __or__(self, other):
            return self

        __ror__ = __or__

    Any = Final = NoReturn = Self = TypeAlias = _Annotation()

    class Protocol:
        """What a class that only describes others derives from."""

    def TypeVar(name):
        """Stands for the variable in annotations."""
        return _Annotation()

    def dataclass_transform(**how):
        """Tells checkers what a decorator does."""
        return lambda decorator: decorator
