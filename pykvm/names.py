"""Names of files in JSON. A name on Linux is bytes, which need not be UTF-8; JSON is UTF-8.

A name that is UTF-8 appears as it is. Of another one, each byte that does not
fit appears as ``\\xNN``, and beside the text, under the same key with
``_base64``, are the bytes themselves: so nobody has to guess.
"""

import os
from binascii import b2a_base64
from collections.abc import Iterable

from pykvm.lean.typing_names import Any


def name_fields(key: str, path: os.PathLike[str] | str) -> dict[str, str]:
    """The members of a JSON object that tell of ``path``."""
    name = os.fspath(path)
    if _is_utf8(name):
        return {key: name}
    return {key: _escaped(name), f"{key}_base64": _base64(name)}


def names_fields(key: str, paths: Iterable[os.PathLike[str] | str]) -> dict[str, list[str]]:
    """The same for a list of names."""
    names = [os.fspath(path) for path in paths]
    if all(map(_is_utf8, names)):
        return {key: names}
    return {key: list(map(_escaped, names)), f"{key}_base64": list(map(_base64, names))}


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON; names in its sentences, too, become UTF-8.

    Who calls it in a sandbox has imported json before.
    """
    # Few runs write any.
    import json

    text = json.dumps(value, indent=indent)
    return json.dumps(_all_escaped(value), indent=indent) if "\\udc" in text else text


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\udc80" <= char <= "\udcff" for char in name)


def _escaped(name: str) -> str:
    return "".join(
        f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in name
    )


def _base64(name: str) -> str:
    return b2a_base64(os.fsencode(name), newline=False).decode()


def _all_escaped(value: Any) -> Any:
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, dict):
        return {_all_escaped(key): _all_escaped(item) for key, item in value.items()}
    return [_all_escaped(item) for item in value] if isinstance(value, list | tuple) else value
