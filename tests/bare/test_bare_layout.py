"""The headers of the bare guest and their Python mirror say the same."""

import re
import shutil
import subprocess
from enum import IntEnum

import pytest
from patience import patience

from pykvm.bare import layout
from pykvm.bare.build import SOURCES

ENUMS: dict[type[IntEnum], str] = {
    layout.OpCode: "OP_",
    layout.RecordError: "ERROR_",
    layout.RunState: "RUN_",
    layout.Region: "REGION_",
    layout.NotifyMode: "NOTIFY_",
    layout.WaitMode: "WAIT_",
}
CONSTANTS = [
    "RESULTS_BASE",
    "RESULTS_SIZE",
    "ARENA_BASE",
    "ARENA_SIZE",
    "CPUS_MAX",
    "VECTOR_IRQ_FIRST",
    "VECTOR_IRQ_END",
    "VECTOR_INTX",
    "COUNTER_INTX_EMPTY",
    "LATENCY_FIRST",
    "LATENCY_STEPS",
    "LATENCY_BUCKETS",
    "SCRIPT_MAGIC",
    "RESULTS_MAGIC",
]


def assertions() -> list[str]:
    """C expressions that must hold."""
    found = [f"{name} == {getattr(layout, name)}" for name in CONSTANTS]
    for enum, prefix in ENUMS.items():
        found += [f"{prefix}{member.name} == {member.value}" for member in enum]
    for structure in layout.LAYOUTS:
        c_name = f"struct {structure.name}"
        found.append(f"sizeof({c_name}) == {structure.size}")
        for field, offset in structure.offsets():
            found.append(f"offsetof({c_name}, {field}) == {offset}")
    return found


def compile_with(lines: list[str]) -> subprocess.CompletedProcess[str]:
    """Check C source that includes the headers."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    head = ["#include <stddef.h>", '#include "layout.h"', '#include "script.h"']
    return subprocess.run(
        ["cc", "-std=c11", "-fsyntax-only", "-I", str(SOURCES), "-x", "c", "-"],
        input="\n".join(head + lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(),
    )


def test_values_sizes_and_offsets_agree():
    done = compile_with([f'_Static_assert({test}, "");' for test in assertions()])
    assert done.returncode == 0, done.stderr


def test_a_difference_would_be_seen():
    assert compile_with(['_Static_assert(offsetof(struct op_queue, used) == 8, "");']).returncode


@pytest.mark.parametrize(("enum", "prefix"), ENUMS.items())
def test_enumerations_are_complete(enum: type[IntEnum], prefix: str):
    text = (SOURCES / "script.h").read_text()
    in_header = set(re.findall(rf"^\s*{prefix}([A-Z_]+)(?:,| = 1,)", text, re.MULTILINE))
    for line in re.findall(r"^enum .*\{(.*)\};", text, re.MULTILINE):
        in_header |= set(re.findall(rf"\b{prefix}([A-Z_]+)", line))
    assert in_header == {member.name for member in enum}


def test_every_structure_is_mirrored():
    text = (SOURCES / "script.h").read_text()
    assert set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) == {
        structure.name for structure in layout.LAYOUTS
    }
