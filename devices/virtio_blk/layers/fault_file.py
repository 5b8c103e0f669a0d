"""Reads fault rules from TOML. Pure.

::

    seed = 1

    [[fault]]
    operation = "read"
    sectors = 100
    errno = "EIO"

The keys of a ``[[fault]]`` table are the arguments of
:class:`~pykvm.devices.virtio_blk.layers.fault_rules.Fault`, except ``call``.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pykvm.devices.virtio_blk.layers.fault_rules import Fault, FaultRules
from pykvm.errors import UsageError
from pykvm.suggest import did_you_mean

_KEYS = ("seed", "fault")
_FAULT_KEYS = tuple(field.name for field in fields(Fault) if field.name != "call")


def parse_faults(text: str) -> FaultRules:
    """The rules in ``text``.

    UsageError for any mistake; its message names a ``[[fault]]`` table by its
    number, from 1.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError, and the errors for very long numbers and very deep arrays.
        raise UsageError(f"the file is not TOML: {error}") from None
    _check_keys(document, _KEYS)
    tables = document.get("fault", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError("fault is not a list of tables", "begin each fault with [[fault]]")
    return FaultRules(_faults(tables), document.get("seed", 0))


def _faults(tables: Iterable[Mapping[str, Any]]) -> Iterable[Fault]:
    for number, table in enumerate(tables, 1):
        try:
            _check_keys(table, _FAULT_KEYS)
            yield Fault(**table)
        except UsageError as error:
            raise UsageError(f"fault {number}: {error.message}", error.hint) from None


def _check_keys(table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known, f"the keys are {', '.join(known)}")
            raise UsageError(f"there is no key '{key}'", hint)
