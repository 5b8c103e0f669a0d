"""QEMU gets a CPU model with which it starts here. Without one, an error says so."""

import os
from pathlib import Path

import pytest

from pykvm.bench.disk.tools.qemu_cpu import CPU_MODELS, cpu_model, qemu_command, qemu_note
from pykvm.errors import HostError

KERNEL = Path("kernel")
MESSAGE = "error: failed to set MSR 0x10a to 0x0"


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A QEMU that cannot have the CPU models that are in the file "bad" beside it, one a line."""
    path = tmp_path / "qemu"
    path.write_text(
        f"#!{os.path.realpath('/bin/sh')}\n"
        'while [ "$1" != -cpu ]; do shift; done\n'
        f'if grep -qxF "$2" "${{0%/*}}/bad"; then echo "{MESSAGE}" >&2; exit 1; fi\n'
        'echo "hello from CPL3"\n'
    )
    path.chmod(0o755)
    return path


def cannot(qemu: Path, *models: str) -> str:
    (qemu.parent / "bad").write_text("\n".join(models))
    return str(qemu)


@pytest.mark.parametrize("number", range(len(CPU_MODELS)))
def test_the_first_cpu_model_that_starts_is_used(qemu: Path, number: int):
    program = cannot(qemu, *CPU_MODELS[:number])
    assert cpu_model(program, "pc", KERNEL) == CPU_MODELS[number]


def test_no_model_that_starts(qemu: Path):
    program = cannot(qemu, *CPU_MODELS)
    with pytest.raises(HostError) as caught:
        cpu_model(program, "pc", KERNEL)
    assert "cannot compare with QEMU, because its machine pc runs no guest" in caught.value.message
    assert MESSAGE in caught.value.message
    assert caught.value.exit_status == 77


def command(**more: str) -> list[str]:
    return qemu_command(
        program="qemu", machine="q35", kernel=KERNEL, words="script", cpu="host", **more
    )


def test_qemu_makes_its_default_memory_without_an_object():
    words = command()
    assert words[words.index("-machine") + 1] == "q35"
    assert "memory-backend" not in " ".join(words)
    assert qemu_note("host") == "-cpu host, default memory (anonymous)"
    assert (
        qemu_note("max") == "-cpu max, because '-cpu host' fails here, default memory (anonymous)"
    )


def test_qemu_with_shared_memory():
    words = command(memory="memfd")
    assert words[words.index("-machine") + 1] == "q35,memory-backend=ram"
    backend = words[words.index("-object") + 1]
    assert backend.startswith("memory-backend-memfd,share=on,id=ram,size=")
    assert qemu_note("host", "memfd") == "-cpu host, memfd memory"
