"""The folder of templates, as a start sees it. Several processes may use and change it at once.

::

    KEY/            a template, complete
    KEY.lock        held while KEY is made
    KEY.building/   what is not complete yet; rubbish unless the lock is held
    KEY.failed      the guest did not boot; the text says why
    removed-…/      rubbish

Templates are made and removed by a rename, so each is complete or absent. Guests that started from
a template keep its memory mapped, and go on when it is removed.
"""

import os
import time
from contextlib import suppress

from pykvm.cache import cache_folder
from pykvm.errors import PykvmError, UsageError
from pykvm.forms import parse_bytes
from pykvm.lean.typing_names import Final

LIMIT_VARIABLE: Final = "PYKVM_TEMPLATE_LIMIT"
DEFAULT_LIMIT: Final = 512 << 20
"""Bytes of all templates together. One of the bundled guest takes 10 MiB."""
FAILED_SECONDS: Final = 3600.0
"""The time after which a guest that did not boot is tried again."""
FAILED: Final = ".failed"
_MOST_REASON: Final = 4096


class TemplateError(PykvmError):
    """A guest has no template, and none can be made, so it has to boot. ``message`` is the reason.

    ``known``: the user knows the reason, or an earlier run has told it.
    """

    def __init__(self, message: str, hint: str = "", *, known: bool = False) -> None:
        super().__init__(message, hint)
        self.known = known


class Store:
    """The templates in ``folder``, at most ``limit`` bytes together."""

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def find(self, key: str) -> str:
        """The folder of the template ``key``, which counts as used now; "" if there is none."""
        path = self.path(key)
        try:
            os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError:
            # A cache that this user may only read, or not even that.
            return path if os.access(path, os.R_OK | os.X_OK) else ""
        return path

    def path(self, key: str) -> str:
        """The place of the template ``key``."""
        return os.path.join(self.folder, key)

    def failure(self, key: str) -> str:
        """Why there is no template ``key``, as of the last hour; "" if that is not known."""
        try:
            with open(self.path(key) + FAILED, encoding="utf-8", errors="replace") as file:
                age = time.time() - os.fstat(file.fileno()).st_mtime
                limit, _, reason = file.read(_MOST_REASON).partition("\n")
                valid = 0 <= age < FAILED_SECONDS and limit in ("", str(self.limit))
                return reason if valid else ""
        except OSError:
            return ""

    def failed(self, key: str, reason: str, *, too_large: bool = False) -> None:
        """Remember why there is no template ``key``. ``too_large``: only while the limit stays."""
        with suppress(OSError), open(self.path(key) + FAILED, "w", encoding="utf-8") as file:
            file.write(f"{self.limit if too_large else ''}\n{reason}")


def open_store() -> Store:
    """The user's templates. TemplateError if this user has no cache folder, or wants none.

    UsageError if $PYKVM_TEMPLATE_LIMIT is no size.
    """
    limit = template_limit()
    if not limit:
        raise TemplateError(f"{LIMIT_VARIABLE} is 0", known=True)
    folder = cache_folder()
    if not folder:
        raise TemplateError("this user has no home to keep one", "set PYKVM_CACHE to a folder")
    return Store(os.path.join(os.path.abspath(folder), "templates"), limit)


def template_limit() -> int:
    """``$PYKVM_TEMPLATE_LIMIT`` in bytes, or its default. UsageError."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return DEFAULT_LIMIT
    limit = parse_bytes(text, "M")
    if limit < 0:
        raise UsageError(
            f"{LIMIT_VARIABLE}={text} is not a size", "write it like 512M; 0 keeps no templates"
        )
    return limit
