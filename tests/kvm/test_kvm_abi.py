"""Our declarations of KVM's interface against the system's own header."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import patience

from pykvm.kvm import abi_build, constants
from pykvm.kvm.native import ffi


def structures() -> list[str]:
    """Every named structure that we declare."""
    return [f"struct {name}" for name in ffi.list_types()[1]]


def fields(ctype: Any, prefix: str = "", base: int = 0) -> Iterator[tuple[str, int, int | None]]:
    """(dotted name, offset, size) of every field, nested ones too; size None if open-ended."""
    for name, field in ctype.fields:
        path, offset = f"{prefix}{name}", base + field.offset
        # Fields of an unnamed union belong to the structure around it.
        if name:
            flexible = field.type.kind == "array" and field.type.length is None
            yield path, offset, None if flexible else ffi.sizeof(field.type)
        if field.type.kind in {"struct", "union"}:
            yield from fields(field.type, f"{path}." if name else prefix, offset)


def expected_values() -> dict[str, int]:
    """C expression to the value that we use, for all structures and numbers."""
    values: dict[str, int] = {}
    for name in structures():
        values[f"sizeof({name})"] = ffi.sizeof(name)
        for path, offset, size in fields(ffi.typeof(name)):
            values[f"offsetof({name}, {path})"] = offset
            if size is not None:
                values[f"sizeof((({name} *)0)->{path})"] = size
    for name, value in vars(constants).items():
        if name.startswith("KVM_"):
            values[name] = value
    return values


def c_program(expressions: list[str]) -> str:
    """A program that prints each expression and its value, tab-separated."""
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/kvm.h>", "int main() {"]
    for expression in expressions:
        print_it = f'printf("%s\\t%llu\\n", "{expression}", (unsigned long long)({expression}));'
        # An older header may lack a newer number, never a structure of ours.
        if expression.startswith("KVM_"):
            print_it = f"\n#ifdef {expression}\n{print_it}\n#endif"
        lines.append(print_it)
    return "\n".join([*lines, "return 0; }", ""])


def test_structures_and_numbers_match_the_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    if not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no <linux/kvm.h>")
    ours = expected_values()
    # KVM_API_VERSION is in the header; our ioctl helpers are not.
    source = tmp_path / "abi.c"
    source.write_text(c_program(list(ours)))
    subprocess.run(
        [compiler, "-o", str(tmp_path / "abi"), str(source)], check=True, timeout=patience()
    )
    output = subprocess.run(
        [str(tmp_path / "abi")], check=True, timeout=patience(), capture_output=True, text=True
    ).stdout
    theirs = {
        expression: int(value)
        for expression, value in (line.split("\t") for line in output.splitlines())
    }
    assert {name: ours[name] for name in theirs} == theirs
    missing = set(ours) - set(theirs)
    assert all(name.startswith("KVM_") for name in missing)
    assert len(missing) < 10, f"the header lacks {sorted(missing)}"


def test_every_structure_is_compared() -> None:
    values = expected_values()
    assert values["sizeof(struct kvm_run)"] == 2352
    assert values["offsetof(struct kvm_run, io.data_offset)"] == 40
    assert values["KVM_SET_USER_MEMORY_REGION"] == 0x4020AE46
    assert len(structures()) > 25


def test_generated_module_is_up_to_date(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    abi_build.write_abi(tmp_path / "_abi.py")
    committed = Path(abi_build.__file__).with_name("_abi.py")
    assert (tmp_path / "_abi.py").read_text() == committed.read_text(), (
        "run: python -P pykvm/kvm/abi_build.py"
    )
