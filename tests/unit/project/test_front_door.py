"""``import pykvm``: the public names, their explanations, and what an import costs."""

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import pykvm

SOURCE = Path(pykvm.__file__)


def typed_imports() -> Iterator[tuple[str, str]]:
    """Modules and names that type checkers see, in the block under TYPE_CHECKING."""
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                yield from ((statement.module or "", alias.name) for alias in statement.names)


def described_attributes(cls: type) -> set[str]:
    """The names in the body of ``cls`` that a docstring of their own follows."""
    (body,) = (
        node.body
        for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        if isinstance(node, ast.ClassDef)
    )
    found = set()
    for node, after in pairwise(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr):
            found.add(target.id)
    return found


def attributes(cls: type) -> set[str]:
    """The members of an enumeration; of a value, its fields."""
    if issubclass(cls, Enum):
        return set(cls.__members__)
    return {name for name in getattr(cls, "__match_args__", ()) if name[0] != "_"} | {
        name for name in getattr(cls, "_record_fields", ()) if name[0] != "_"
    }


def test_the_import_alone_imports_no_other_package():
    script = (
        "import sys; before = set(sys.modules); import pykvm; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"pykvm", "pykvm.lean", "pykvm.lean.lazy"}


def test_type_checkers_see_the_same_names():
    seen = dict(reversed(pair) for pair in typed_imports())
    assert sorted(seen) == sorted(pykvm.__all__)
    for name, module in seen.items():
        assert getattr(pykvm, name) is getattr(import_module(module), name)


def test_a_directory_of_the_package_has_every_name():
    assert {*pykvm.__all__, "__version__"} <= set(dir(pykvm))


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'pykvm' has no attribute 'Machin'") as caught:
        pykvm.Machin  # noqa: B018
    assert caught.value.name == "Machin"
    assert caught.value.obj is pykvm


@pytest.mark.parametrize("name", pykvm.__all__)
def test_everything_about_a_name_is_explained(name):
    thing = getattr(pykvm, name)
    text = inspect.getdoc(thing) or ""
    assert text.endswith(".") or "::" in text, text
    if not isinstance(thing, type):
        return
    explained = set()
    for cls in thing.__mro__[:-1]:
        if cls.__module__.startswith("pykvm."):
            explained |= described_attributes(cls)
            explained |= {
                word for word in attributes(thing) if f"``{word}``" in (cls.__doc__ or "")
            }
    assert sorted(attributes(thing) - explained) == []
    own = [member for key, member in vars(thing).items() if key[0] != "_"]
    for member in own:
        if isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member):
            assert inspect.getdoc(member), member
