"""The C functions that pykvm calls, and the generator of ``_abi.py``.

``python -P pykvm/host/libc/abi_build.py`` writes ``_abi.py``, which is committed.
``pykvm/kvm/abi_build.py`` does the same for KVM's structures. A test generates the file
again and compares (``tests/unit/host/test_host_libc.py``).

syscall(2) is variadic in C and has six fixed words here. On x86-64 both conventions
pass arguments alike, except for AL, which the function ignores.
"""

from pathlib import Path

from cffi import FFI

MODULE = "pykvm.host.libc._abi"

LIBC = """
long syscall(long number, long a, long b, long c, long d, long e, long f);
"""

SECCOMP = """
struct scmp_version { unsigned int major, minor, micro; };
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a, datum_b; };
const struct scmp_version *seccomp_version(void);
void *seccomp_init(uint32_t action);
void seccomp_release(void *context);
int seccomp_attr_set(void *context, int attribute, uint32_t value);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_rule_add_array(void *context, uint32_t action, int syscall, unsigned int count,
                           const struct scmp_arg_cmp *comparisons);
int seccomp_load(void *context);
"""


def write_abi(path: Path) -> None:
    """Write the generated module to ``path``."""
    builder = FFI()
    builder.cdef(LIBC + SECCOMP)
    builder.set_source(MODULE, None)
    builder.emit_python_code(str(path))


if __name__ == "__main__":
    write_abi(Path(__file__).with_name("_abi.py"))
