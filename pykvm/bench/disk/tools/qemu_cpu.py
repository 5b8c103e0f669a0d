"""The CPU model with which QEMU runs a guest here: ``-cpu host`` fails on some hosts."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pykvm.bench.disk.tools.child import last_words, running
from pykvm.bench.disk.tools.vm_runner import MEMORY_MIB
from pykvm.errors import HostError

CPU_MODELS: Final = ("host", "host,arch-capabilities=off", "max", "qemu64")
"""The models in the order of trial. The more of the host's CPU a guest sees, the better.

``arch-capabilities=off`` leaves out MSR 0x10a, which KVM may refuse although it offers the bit."""
DEFAULT_MACHINE: Final = "pc"
DEFAULT_MEMORY: Final = "default"
MEMORIES: Final = MappingProxyType({DEFAULT_MEMORY: "", "memfd": "memory-backend-memfd,share=on"})
"""The QEMU object for guest RAM, by the value of ``memory=``. "" stands for no object: QEMU then
makes anonymous memory, for which it asks for huge pages."""
MODE: Final = "hello 0"
WORDS: Final = b"hello from CPL3"
"""The bare guest prints this in this mode, a few hundred instructions after its entry."""
PATIENCE_SECONDS: Final = 60.0


@cache
def cpu_model(program: str, machine: str, kernel: Path) -> str:
    """The first of CPU_MODELS with which the bare guest runs in QEMU's ``machine``; HostError."""
    reasons = []
    for model in CPU_MODELS:
        command = qemu_command(
            program=program, machine=machine, kernel=kernel, words=MODE, cpu=model
        )
        words = _failure(command)
        if words is None:
            return model
        reasons.append(f"-cpu {model}{words}")
    raise HostError(
        f"cannot compare with QEMU, because its machine {machine} runs no guest here: "
        + ", ".join(reasons[:1])
        + f"; nor does it with {', '.join(CPU_MODELS[1:])}",
        "leave --against qemu out",
    )


def qemu_command(
    *, program: str, machine: str, kernel: Path, words: str, cpu: str, memory: str = DEFAULT_MEMORY
) -> list[str]:
    """A command line that boots the bare guest without a disk; ``words`` are for the guest.

    ``memory`` is one of MEMORIES.
    """
    backend = MEMORIES[memory]
    return [
        *(program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "kvm", "-cpu", cpu, "-m", f"{MEMORY_MIB}M"),
        *("-machine", machine + (",memory-backend=ram" if backend else "")),
        *(("-object", f"{backend},id=ram,size={MEMORY_MIB}M") if backend else ()),
        *("-kernel", str(kernel), "-append", words, "-serial", "stdio"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"),
    ]


def qemu_note(cpu: str, memory: str = DEFAULT_MEMORY) -> str:
    """A few words on how QEMU was run, for readers of its figures."""
    why = "" if cpu == CPU_MODELS[0] else ", because '-cpu host' fails here"
    kind = "default memory (anonymous)" if memory == DEFAULT_MEMORY else f"{memory} memory"
    return f"-cpu {cpu}{why}, {kind}"


def _failure(command: list[str]) -> str | None:
    """None if the guest printed its words; else the failure, as the end of a sentence."""
    with tempfile.TemporaryFile() as errors, running(command, errors) as child:
        try:
            said, _ = child.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return " is silent"
        return None if WORDS in said else last_words(errors) or " ends without a message"
