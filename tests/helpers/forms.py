"""Finds the tests that the form of the hot path can affect (speed/README.md); they run in both.

A test file is affected if it imports compiled modules, directly or through other modules
of pykvm or of the tests. It is also affected if it contains the word "disk": it may start
pykvm as a program, and all compiled modules serve a disk. There is no list to keep. Long tests of
other subjects that use a disk, such as the examples, have the marker ``one_form`` and run once.
"""

import ast
import re
from functools import cache
from pathlib import Path

from checkout import HELPERS, ROOT, TESTS


@cache
def compiled_modules() -> frozenset[Path]:
    """The sources of the modules that are compiled."""
    text = (ROOT / "speed/build.py").read_text()
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT"
    )
    return frozenset(path for name in names for path in files_of(name))


@cache
def affected(path: Path) -> bool:
    """True if the form can affect the tests in file ``path``."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += imports(one)
    ours = (one for one in seen if one.is_relative_to(TESTS))
    return bool(seen & compiled_modules()) or any(
        re.search("disk", one.read_text(), re.IGNORECASE) for one in ours
    )


@cache
def imports(path: Path) -> frozenset[Path]:
    """The files of pykvm and of the tests that file ``path`` imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(file for name in found for file in files_of(name))


@cache
def files_of(name: str) -> tuple[Path, ...]:
    """The files of pykvm that an import of module ``name`` reads, without its packages."""
    if name.partition(".")[0] == "pykvm":
        places = [ROOT.joinpath(*name.split("."))]
    elif "." in name:
        return ()
    else:
        places = [HELPERS / name]
    files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
    return tuple(file for file in files if file.exists())
