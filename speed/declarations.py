"""Writes the declarations for Cython (a .pxd) that follow from a module's annotations.

The hot modules are ordinary Python. Cython has to know which of their attributes,
arguments and results fit into machine words. The annotations for mypy tell that, so this
translates them (docs/decisions/0010-two-speeds.md):

==============================  =======================================
in the source                   for the compiler
==============================  =======================================
``int``, ``bool``, ``float``    ``long long``, ``bint``, ``double``
the names of pykvm.hot.words    unsigned words, and typed memoryviews
``list[…]``, ``dict[…]``, …     the builtin type
a class of a hot module         that class, as C structure, also as base
an imported ``CONSTANT``        a word with its value; also ``_OWN``
anything else                   a Python object
==============================  =======================================

A class whose body declares attributes becomes an extension type. Its methods and the
module's functions become C functions that Python can call, too. Functions with a closure,
a generator or a decorator stay Python functions. Local variables get their types from
Cython's inference, which uses these declarations, and from the container over which a loop
goes.
"""

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

WORDS = {
    "int": "long long",
    "bool": "bint",
    "float": "double",
    "U64": "unsigned long long",
    "Bytes": "unsigned char[::1]",
    "Words16": "unsigned short[::1]",
    "Words32": "unsigned int[::1]",
    "Words64": "unsigned long long[::1]",
    "Longs": "long long[::1]",
    "list": "list",
    "dict": "dict",
    "tuple": "tuple",
    "bytes": "bytes",
    "str": "str",
}
_ITERABLES = {"Sequence", "Iterable", "list", "tuple", "Collection"}
_NO_INTEGERS = (ast.Name, ast.Call, ast.Attribute)
_CLOSURES = (ast.Lambda, ast.GeneratorExp, ast.FunctionDef, ast.Yield, ast.YieldFrom)


def extension_types(tree: ast.Module, bases: Collection[str]) -> Iterator[ast.ClassDef]:
    """The classes of ``tree`` that declare their attributes and are neither protocols nor enums.

    Their base, if any, is one of ``bases``.
    """
    for node in tree.body:
        if (
            isinstance(node, ast.ClassDef)
            and all(isinstance(base, ast.Name) and base.id in bases for base in node.bases)
            and not node.decorator_list
            and any(isinstance(item, ast.AnnAssign) for item in node.body)
        ):
            yield node


def _declared(node: ast.ClassDef) -> dict[str, ast.expr]:
    """The attributes that a class declares, with their annotations."""
    return {
        item.target.id: item.annotation
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _compilable(node: ast.stmt) -> TypeGuard[ast.FunctionDef]:
    """True if ``node`` is a function that can become a C function."""
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return False
    if node.args.kwonlyargs or node.args.vararg or node.args.kwarg:
        return False
    return not any(isinstance(item, _CLOSURES) for part in node.body for item in ast.walk(part))


def parse(name: str, root: Path) -> ast.Module:
    """The module ``name`` below ``root``; an empty one if it is not there."""
    source = root.joinpath(*name.split(".")).with_suffix(".py")
    return ast.parse(source.read_text() if source.is_file() else "")


def integer_constants(name: str, root: Path) -> set[str]:
    """The names of integer constants in module ``name``, which are in capitals.

    A compiled module has a C word for each constant that it imports, and for each
    constant of its own that no other module imports (``_LIKE_THIS``).
    """
    found = set()
    for node in parse(name, root).body:
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign) and node.value:
            target = node.target
        else:
            continue
        value = node.value
        assert value is not None
        if (
            isinstance(target, ast.Name)
            and target.id.isupper()
            and not any(isinstance(item, _NO_INTEGERS) for item in ast.walk(value))
            and isinstance(eval(compile(ast.Expression(value), name, "eval"), {}), int)
        ):
            found.add(target.id)
    return found


class Module:
    """One hot module: ``name`` is dotted, ``types`` are the extension types it defines.

    ``attributes`` are those that each of its types declares or inherits.
    """

    def __init__(self, name: str, root: Path, known: "Iterable[Module]" = ()) -> None:
        """``root``: the folder of the packages. ``known``: modules from which bases may come."""
        self.name = name
        self._root = root
        self.tree = parse(name, root)
        inherited = {base: own for module in known for base, own in module.attributes.items()}
        self.attributes: dict[str, dict[str, ast.expr]] = {}
        for node in extension_types(self.tree, inherited):
            bases = (inherited[base.id] for base in node.bases if isinstance(base, ast.Name))
            self.attributes[node.name] = next(bases, {}) | _declared(node)
        self.types = set(self.attributes)
        self.functions = {node.name for node in self.tree.body if _compilable(node)}

    def declarations(self, modules: "dict[str, Module]") -> str:
        """The .pxd, given all hot ``modules`` by name."""
        own = integer_constants(self.name, self._root)
        imports = [f"cdef long long {name}" for name in sorted(own) if name.startswith("_")]
        known = set(self.types)
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and (other := modules.get(node.module or "")):
                for alias in node.names:
                    if alias.name in other.types | other.functions:
                        imports.append(f"from {other.name} cimport {alias.name}")
                        known |= {alias.name} & other.types
            if isinstance(node, ast.ImportFrom):
                constants = integer_constants(node.module or "", self._root)
                imports += [f"cdef long long {a.name}" for a in node.names if a.name in constants]
        writer = _Writer(known)
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name in self.types:
                writer.extension_type(node, self.attributes[node.name])
            elif isinstance(node, ast.FunctionDef) and node.name in self.functions:
                writer.function(node, "", {})
        return "\n".join(["cimport cython", *imports, "", *writer.lines, ""])


class _Writer:
    def __init__(self, known: set[str]) -> None:
        self.lines: list[str] = []
        self._known = known

    def extension_type(self, node: ast.ClassDef, attributes: dict[str, ast.expr]) -> None:
        bases = ", ".join(map(ast.unparse, node.bases))
        self.lines.append(f"cdef class {node.name}({bases}):")
        for name, annotation in _declared(node).items():
            self.lines.append(f"    cdef public {self._type(annotation)} {name}")
        for item in node.body:
            if _compilable(item) and not item.name.startswith("__"):
                self.function(item, "    ", attributes)
        self.lines.append("")

    def function(self, node: ast.FunctionDef, indent: str, attributes: dict[str, ast.expr]) -> None:
        arguments = ["self"] if indent else []
        defaults = len(node.args.args) - len(node.args.defaults)
        for index, argument in enumerate(node.args.args):
            if indent and index == 0:
                continue
            given = "=*" if index >= defaults else ""
            arguments.append(f"{self._type(argument.annotation)} {argument.arg}{given}")
        locals_ = self._locals(node, attributes)
        if locals_:
            self.lines.append(f"{indent}@cython.locals({locals_})")
        result = self._type(node.returns)
        self.lines.append(f"{indent}cpdef {result} {node.name}({', '.join(arguments)})")

    def _locals(self, node: ast.FunctionDef, attributes: dict[str, ast.expr]) -> str:
        names = {a.arg: a.annotation for a in node.args.args if a.annotation}
        found: dict[str, str] = {}
        for item in ast.walk(node):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                names[item.target.id] = item.annotation
                kind = self._type(item.annotation)
                if kind != "object":
                    found[item.target.id] = kind
        for item in ast.walk(node):
            if isinstance(item, ast.For) and isinstance(item.target, ast.Name):
                target, over = item.target.id, item.iter
            elif (
                isinstance(item, ast.Assign)
                and isinstance(item.targets[0], ast.Name)
                and isinstance(item.value, ast.Subscript)
                and not isinstance(item.value.slice, ast.Slice)
            ):
                target, over = item.targets[0].id, item.value.value
            else:
                continue
            annotation = None
            if isinstance(over, ast.Name):
                annotation = names.get(over.id)
            elif isinstance(over, ast.Attribute) and isinstance(over.value, ast.Name):
                annotation = attributes.get(over.attr) if over.value.id == "self" else None
            if element := self._element(annotation):
                found[target] = element
        return ", ".join(f'{name}="{kind}"' for name, kind in found.items())

    def _element(self, annotation: ast.expr | None) -> str:
        if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.value, ast.Name):
            return ""
        if annotation.value.id not in _ITERABLES:
            return ""
        inner = annotation.slice
        if isinstance(inner, ast.Tuple):
            inner = inner.elts[0]
        kind = self._type(inner)
        return kind if kind in self._known else ""

    def _type(self, annotation: ast.expr | None) -> str:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.Subscript):
            annotation = annotation.value
        if isinstance(annotation, ast.Name):
            if annotation.id in self._known:
                return annotation.id
            return WORDS.get(annotation.id, "object")
        return "object"
