"""Names of files in JSON. JSON is UTF-8, but a name on Linux is bytes that need not be UTF-8.

A name that is UTF-8 appears unchanged. In any other name, each byte that is
not UTF-8 appears as ``\\xNN``, and a second member, whose key ends with
``_base64``, has the exact bytes.
"""

import os
from binascii import b2a_base64
from collections.abc import Iterable

from pykvm.lean.typing_names import Any


def name_fields(key: str, path: os.PathLike[str] | str) -> dict[str, str]:
    """The members of a JSON object for the file name ``path``."""
    name = os.fspath(path)
    if _is_utf8(name):
        return {key: name}
    return {key: _escaped(name), f"{key}_base64": _base64(name)}


def names_fields(key: str, paths: Iterable[os.PathLike[str] | str]) -> dict[str, list[str]]:
    """The members of a JSON object for a list of file names."""
    names = [os.fspath(path) for path in paths]
    if all(map(_is_utf8, names)):
        return {key: names}
    return {key: list(map(_escaped, names)), f"{key}_base64": list(map(_base64, names))}


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON text; file names within its sentences become UTF-8, too.

    A caller in a sandbox has to import json beforehand.
    """
    # Few runs write JSON.
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
