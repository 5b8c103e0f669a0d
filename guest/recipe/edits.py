"""The few edits of kernel source that measurement asked for, each with what it is worth.

All of them serve the `emulated` flavour, and take effect only when it is built (without SMP), so
that both flavours come from one tree. "instructions" are those the guest's kernel executes up to
the shell prompt with 64 MiB of memory; a host that emulates kernel code needs about 2 microseconds
for each. An edit that does not find its place is an error: the package has changed, and somebody
has to look.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """In `path`, `old` (which occurs there exactly once) becomes `new`."""

    path: str
    old: str
    new: str
    why: str


def _skip_empty(level: str, address: str) -> Edit:
    return Edit(
        "arch/x86/mm/init_64.c",
        f"if (!after_bootmem &&\n\t\t\t    !e820__mapped_any(paddr & {address},",
        f"if (!after_bootmem && (IS_ENABLED(CONFIG_SMP) || !{level}_none(*{level})) &&\n"
        f"\t\t\t    !e820__mapped_any(paddr & {address},",
        "0.7 M instructions: an entry that is empty already needs no search of the memory map "
        "before it is cleared",
    )


EDITS = (
    Edit(
        "kernel/Kconfig.hz",
        "\tconfig HZ_100\n",
        '\tconfig HZ_20\n\t\tbool "20 HZ"\n\n\tconfig HZ_100\n',
        "a tick costs 4 to 12 ms there: 100 Hz doubles the boot time, 250 Hz livelocks",
    ),
    Edit(
        "kernel/Kconfig.hz",
        "\tdefault 100 if HZ_100\n",
        "\tdefault 20 if HZ_20\n\tdefault 100 if HZ_100\n",
        "the value that belongs to the choice above",
    ),
    Edit(
        "arch/x86/include/asm/sparsemem.h",
        "# define SECTION_SIZE_BITS\t27 ",
        "# define SECTION_SIZE_BITS\t(IS_ENABLED(CONFIG_SMP) ? 27 : 25) ",
        "1.0 M instructions: page structures are initialised by whole sections, and 128 MiB is "
        "more than the guest has",
    ),
    Edit(
        "arch/x86/Kconfig",
        "\tselect ARCH_HAS_STRICT_KERNEL_RWX\n",
        "\tselect ARCH_HAS_STRICT_KERNEL_RWX\tif SMP\n",
        "1.3 M instructions: no second pass over the page tables of the kernel's own image",
    ),
    Edit(
        "arch/x86/kernel/vmlinux.lds.S",
        "#if defined(CONFIG_X86_64)\n/*\n * On 64-bit, align RODATA",
        "#ifndef CONFIG_STRICT_KERNEL_RWX\n#undef HPAGE_SIZE\n#define HPAGE_SIZE PAGE_SIZE\n"
        "#undef PMD_SIZE\n#define PMD_SIZE PAGE_SIZE\n#endif\n"
        "#if defined(CONFIG_X86_64)\n/*\n * On 64-bit, align RODATA",
        "1.5 M instructions: without gaps of up to 2 MiB between the sections (the one before the "
        "end of .bss is cleared, the others are freed page by page)",
    ),
    Edit(
        "mm/slab.c",
        "#define REAPTIMEOUT_AC\t\t(2*HZ)\n",
        "#define REAPTIMEOUT_AC\t\t(IS_ENABLED(CONFIG_SMP) ? 2*HZ : 600*HZ)\n",
        "15 to 30 ms of each command after two idle seconds: unused objects are looked for "
        "less often, and anyway when memory runs short",
    ),
    _skip_empty("pte", "PAGE_MASK"),
    _skip_empty("pmd", "PMD_MASK"),
    _skip_empty("pud", "PUD_MASK"),
)


def apply(source: Path, edits: tuple[Edit, ...] = EDITS) -> None:
    """Makes the edits in a fresh source tree. Raises ValueError when one does not fit."""
    for edit in edits:
        file = source / edit.path
        text = file.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(
                f"the kernel source {edit.path} is not as guest/recipe/edits.py expects: "
                f"{edit.old.strip()!r} occurs {text.count(edit.old)} times, not once"
            )
        file.write_text(text.replace(edit.old, edit.new))
