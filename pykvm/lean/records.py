"""``@record``: frozen values with named fields, like ``@dataclass(frozen=True)``.

At every start, ``dataclasses`` writes and compiles the source of up to six functions for
each class, which takes 0.4 ms, and it imports ``inspect``. A boot has forty such classes:
they took a quarter of the time to the guest's first instruction. Here all classes share
the same functions. Type checkers see dataclasses (PEP 681). The rule for the use of
records is in :mod:`pykvm.lean`.
"""

from collections.abc import Callable

from pykvm.lean.typing_names import Any, NoReturn, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Make fields of the annotations in ``cls``, after the fields of its base if that is a record.

    The constructor takes values in this order or by name. A field with a value in
    the body is optional. Two records are equal if they are of one class and their
    fields are equal. Comparisons and ``repr`` ignore fields whose names begin with
    an underscore. ``__post_init__``, if ``cls`` has one, is called when the fields
    are set.
    """
    return _made(cls, positional=True)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def keyword_record(cls: type[_T]) -> type[_T]:
    """As :func:`record`, but these fields are passed only by name, also in derived classes."""
    return _made(cls, positional=False)


def replace(value: _T, **changes: Any) -> _T:
    """A copy of ``value`` with ``changes``."""
    return type(value)(**(vars(value) | changes))


def _made(cls: type[_T], positional: bool) -> type[_T]:
    own = tuple(cls.__annotations__)
    fields = getattr(cls, "_record_fields", ()) + own
    names = getattr(cls, "__match_args__", ()) + (own if positional else ())
    attributes = {
        "_record_fields": fields,
        "_record_shown": tuple(name for name in fields if not name.startswith("_")),
        "_record_defaults": {name: getattr(cls, name) for name in fields if hasattr(cls, name)},
        "__match_args__": names,
        "__init__": _init(names, names == fields, hasattr(cls, "__post_init__")),
        "__setattr__": _frozen,
        "__delattr__": _frozen,
        "__eq__": _eq,
        "__hash__": _hash,
        "__repr__": _repr,
    }
    for name, value in attributes.items():
        setattr(cls, name, value)
    return cls


def _init(names: tuple[str, ...], complete: bool, checked: bool) -> Callable[..., None]:
    """A constructor.

    The fields ``names`` may be passed by position; ``complete``: these are all
    fields. ``checked``: call ``__post_init__``.
    """
    count = len(names)

    def init(self: Any, *values: Any, **named: Any) -> None:
        if complete and len(values) == count and not named:
            self.__dict__.update(zip(names, values))  # noqa: B905 - their number is the same
        else:
            self.__dict__.update(_bound(type(self), values, named))
        if checked:
            self.__post_init__()

    return init


def _bound(cls: Any, values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The values of all fields by name; TypeError."""
    given = dict(zip(cls.__match_args__, values, strict=False))
    state: dict[str, Any] = cls._record_defaults | given | named
    wrong = [name for name in named if name in given or name not in cls._record_fields]
    wrong += [name for name in cls._record_fields if name not in state]
    if wrong or len(given) < len(values):
        what = f"not so with {', '.join(wrong)}" if wrong else f"not {len(values)} values"
        raise TypeError(f"{cls.__name__} takes {', '.join(cls._record_fields)}, {what}")
    return state


def _frozen(self: Any, name: str, value: Any = None) -> NoReturn:
    raise AttributeError(f"{name} of a {type(self).__name__} cannot be changed")


def _shown(value: Any) -> tuple[Any, ...]:
    state = value.__dict__
    return tuple([state[name] for name in type(value)._record_shown])


def _eq(self: Any, other: object) -> bool:
    return _shown(self) == _shown(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_shown(self))


def _repr(self: Any) -> str:
    shown = zip(type(self)._record_shown, _shown(self), strict=True)
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"
