"""The fence really is a locked instruction, and cheap to load."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.virtio import queue
from pykvm.virtio.fence import full_fence, queue_fence

# LOCK CMPXCHG / XADD / BTS / INC-like with a memory operand, or XCHG with memory (LOCK implied).
LOCKED = re.compile(rb"\xf0[\x40-\x4f]?(\x0f[\xb0\xb1\xc0\xc1\xab\xba]|[\x80-\x87\xfe\xff])", re.S)
XCHG_MEMORY = re.compile(rb"[\x86\x87][\x00-\x3f]", re.S)


def first_block(code: bytes) -> bytes:
    """The code up to the first RET, which every call executes if there is no branch before it."""
    return code[: code.index(b"\xc3")]


def test_the_call_executes_a_locked_instruction() -> None:
    function = ctypes.PyDLL(None).pthread_spin_trylock
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address
    code = first_block(ctypes.string_at(address, 64))
    assert LOCKED.search(code) or XCHG_MEMORY.search(code), code.hex()


def test_the_scan_does_not_accept_plain_code() -> None:
    # mov [rdi], eax; mov eax, [rsi]; ret: the code of a store and a load by memoryview.
    plain = first_block(bytes.fromhex("8907 8b06 c3"))
    assert not LOCKED.search(plain)
    assert not XCHG_MEMORY.search(plain)


def test_the_fence_reaches_the_function_and_can_be_repeated() -> None:
    fence = full_fence()
    word = fence.args[0]._obj  # type: ignore[attr-defined]
    changed = False
    for value in (0, 1):  # one of them means unlocked, which one is the C library's choice
        word[0] = value
        fence()
        changed |= word[0] != value
        fence()  # locked now: a trylock that fails is a fence as well
    assert changed


def test_a_queue_is_given_a_fence_if_it_has_none_of_its_own() -> None:
    assert (queue_fence() is queue.no_fence) == queue.COMPILED


@pytest.mark.skipif(not queue.COMPILED, reason="the hot path is interpreted")
def test_the_module_of_queues_has_a_fence_when_compiled() -> None:
    """MFENCE, or the alternative of compilers: LOCK OR of 0 to the top of the stack."""
    code = Path(queue.__file__).read_bytes()
    assert re.search(rb"\x0f\xae\xf0|\xf0\x48?\x83\x0c\x24\x00", code)


def test_importing_the_ring_loads_no_foreign_function_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import pykvm.virtio.split, pykvm.virtio.fence;"
        "sys.exit(bool({'ctypes', 'cffi', 'threading'} & (set(sys.modules) - before)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
