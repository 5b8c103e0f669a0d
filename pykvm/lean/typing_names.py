"""Names of :mod:`typing` for modules of a start, without importing it.

Only type checkers read these names, but the import of ``typing`` takes 3 ms, a twelfth
of the time to a guest's first instruction (1 ms of it is ``re``). Checkers see the real
names here. At run time they are objects that can stand in annotations. Modules that a boot
without disks does not import use ``typing`` itself.
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
        """The base of classes that only describe other classes."""

    def TypeVar(name):
        """Stands for a type variable in annotations."""
        return _Annotation()

    def dataclass_transform(**how):
        """Describes a decorator to checkers, and does nothing at run time."""
        return lambda decorator: decorator
