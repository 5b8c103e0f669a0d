"""docs/reference/api.md, made from the docstrings of the library's public names.

``python tests/helpers/api_page.py`` writes the page. A test compares it with the docstrings.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from checkout import ROOT

import pykvm

PAGE = ROOT / "docs/reference/api.md"
HEAD = """\
# The library

`import pykvm` imports nothing else: each name is imported when it is first used. Programs use the
names on this page. [The tutorial](../tutorial.md#do-the-same-from-python) introduces them, and
[examples/](../../examples/) has programs to start from. `help(pykvm.boot)` says the same as this
page, which is made from the docstrings by `python tests/helpers/api_page.py`.
"""
GROUPS = {
    "Guests": "boot Guest Result Process InputStream OutputStream Console Snapshot Guests",
    "Errors": "PykvmError UsageError HostError SnapshotError GuestError CommandFailed GuestDied "
    "GuestTimeout",
    "Disks": "DiskConfig Disk Recording IoStatus RateLimits CacheMode DetectZeroes DiscardMode "
    "EngineKind ErrorAction ErrorPolicy ImageFormat Locking MergePolicy",
    "Faults": "FaultPlan Fault FaultRule Access Effect",
    "Traces": "TraceLog TraceOptions TraceFormat",
    "Machines": "MachineConfig ConsoleMode Machine RunState Outcome OutcomeKind CommandResult "
    "run_command save_booted",
    "Events": "Event Stop Resume BlockIoError IoError DiskHeld HostShortage GuestPanicked Shutdown",
}
"""The public names, in the order of the page."""
CONSTRUCTED = ("FaultPlan", "TraceLog", "Machine")
"""Classes without fields whose constructors programs call."""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for title, names in GROUPS.items():
        links = ", ".join(f"[{name}](#{name.lower()})" for name in names.split())
        parts.append(f"## {title}\n\n{links}\n")
        parts += [entry(name) for name in names.split()]
    return "\n".join(parts)


def entry(name: str) -> str:
    """The part of the page about the public name ``name``."""
    thing = getattr(pykvm, name)
    node = source(thing)
    text = f"### {name}\n\n"
    if isinstance(node, ast.FunctionDef):
        return text + f"```python\n{signature(name, node)}\n```\n\n{prose(thing)}\n"
    parts = [text, prose(thing), "\n\n"]
    if (made := constructor(thing)) is not None:
        parts = [text, f"```python\n{signature(name, made)}\n```\n\n", prose(thing), "\n\n"]
        if more := ast.get_docstring(made):
            parts.append(markdown(more) + "\n\n")
    parts += [f"- {line}\n" for line in members(thing)]
    return "".join(parts).rstrip("\n") + "\n"


def prose(thing: object) -> str:
    """The docstring of ``thing`` as Markdown."""
    return markdown(inspect.getdoc(thing) or "")


def source(thing: object) -> ast.ClassDef | ast.FunctionDef:
    """The definition of a class or function."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body  # type: ignore[arg-type]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


def constructor(cls: type) -> ast.FunctionDef | None:
    """The constructor of ``cls``, if programs call it; a class with fields has none of its own."""
    if cls.__name__ not in CONSTRUCTED:
        return None
    (made,) = (
        node
        for node in source(cls).body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    return made


def members(cls: type) -> Iterator[str]:
    """The lines about fields, properties and methods, those of base classes included."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("pykvm.") or (
            base.__name__ in pykvm.__all__ and (base is not cls)
        ):
            continue
        body = source(base).body
        for node, after in pairwise([*body, ast.Pass()]):
            if isinstance(node, ast.FunctionDef):
                doc, shown = ast.get_docstring(node), method(node)
                name = node.name
            else:
                doc, shown, name = field(node, after)
            if not doc or name.startswith("_") or name in seen:
                continue
            seen.add(name)
            yield f"`{shown}`: {one_paragraph(doc)}"


def field(node: ast.stmt, after: ast.stmt) -> tuple[str, str, str]:
    """The docstring, the code and the name of a field; empty if ``node`` is none."""
    doc = after.value.value if is_text(after) else ""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        default = f" = {ast.unparse(node.value)}" if node.value else ""
        return doc, f"{node.target.id}: {annotation(node.annotation)}{default}", node.target.id
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        value = ast.unparse(node.value)
        return doc, name if value == "auto()" else f"{name} = {value}", name
    return "", "", "_"


def is_text(node: ast.stmt) -> bool:
    """True for a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def method(node: ast.FunctionDef) -> str:
    """A method's or property's first line."""
    kinds = {ast.unparse(one) for one in node.decorator_list}
    if kinds & {"property", "cached_property"}:
        return f"{node.name}: {annotation(node.returns)}"
    prefix = "classmethod " if "classmethod" in kinds else ""
    return f"{prefix}{signature(node.name, node, one_line=True)}"


def signature(name: str, node: ast.FunctionDef, one_line: bool = False) -> str:
    """The call of a function, without ``self``; it has a line for each argument if it is long."""
    arguments = node.args
    shown = []
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(positional, defaults, strict=True):
        if argument.arg not in ("self", "cls"):
            shown.append(one_argument(argument, default))
    if arguments.vararg:
        shown.append(f"*{one_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        shown.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        shown.append(one_argument(argument, default))
    returns = annotation(node.returns)
    after = f" -> {returns}" if returns not in ("None", "") and node.name != "__init__" else ""
    line = f"{name}({', '.join(shown)}){after}"
    if one_line or len(line) <= 90:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){after}"


def one_argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = annotation(argument.annotation)
    text = f"{argument.arg}: {kind}" if kind else argument.arg
    return text if default is None else f"{text} = {ast.unparse(default)}"


def annotation(node: ast.expr | None) -> str:
    """A type as it reads best: without quotes."""
    if node is None:
        return ""
    return ast.unparse(node).replace("'", "").replace('"', "").replace("re.", "")


def one_paragraph(doc: str) -> str:
    return " ".join(markdown(inspect.cleandoc(doc)).split())


def markdown(text: str) -> str:
    """A docstring as Markdown: roles and double backquotes become code, ``::`` begins a block."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`", lambda found: f"`{found[1]}`", text)
    text = text.replace("``", "`")
    lines: list[str] = []
    block: list[str] | None = None
    for line in text.split("\n"):
        if block is not None and (line.startswith("    ") or not line):
            block.append(line[4:])
            continue
        if block is not None:
            lines += fenced(block)
            block = None
        lines.append(line.removesuffix(":") if line.endswith("::") else line)
        if line.endswith("::"):
            block = []
    if block is not None:
        lines += fenced(block)
    return "\n".join(lines).rstrip()


def fenced(block: list[str]) -> list[str]:
    while block and not block[-1]:
        block.pop()
    while block and not block[0]:
        block.pop(0)
    return ["", "```python", *block, "```", ""]


if __name__ == "__main__":
    PAGE.write_text(page())
