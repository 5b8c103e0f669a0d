"""Tells if this host backs memory with pages of 2 MiB (transparent huge pages).

One large page replaces 512 small ones. So a request with O_DIRECT is one segment for
the host's disk, and KVM's page tables are smaller. Linux has one setting for
anonymous memory and one for shared memory, which distributions leave at ``never``.
Linux 6.8 and later have further settings for each size of page, which few hosts
change and pykvm ignores (Documentation/admin-guide/mm/transhuge.rst).
"""

from pykvm.lean.typing_names import Final

LARGE_PAGE: Final = 2 << 20
"""In bytes. The addresses of a mapping have to be multiples of it."""

SETTING: Final = "/sys/kernel/mm/transparent_hugepage/enabled"
"""The setting for anonymous memory."""
SETTING_SHARED: Final = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_ASKED_FOR: Final = (b"[always]", b"[madvise]")
_ASKED_FOR_SHARED: Final = (b"[always]", b"[within_size]", b"[advise]", b"[force]")


def has_large_pages(shared: bool = False) -> bool:
    """True if the host gives large pages to anonymous, or ``shared``, memory that asks for them."""
    try:
        with open(SETTING_SHARED if shared else SETTING, "rb") as file:
            setting = file.read()
    except OSError:
        return False
    return any(word in setting for word in (_ASKED_FOR_SHARED if shared else _ASKED_FOR))
