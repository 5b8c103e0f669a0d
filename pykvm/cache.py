"""Where pykvm keeps what it has built and found out, to have it at once the next time."""

import os


def cache_folder() -> str:
    """``$PYKVM_CACHE``, or pykvm's folder of the user's cache; "" if this user has neither.

    Relative paths are no user's: what they mean depends on where pykvm is started (XDG Base
    Directory Specification).
    """
    if chosen := os.environ.get("PYKVM_CACHE"):
        return chosen
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        # Without HOME this looks into the list of users, and leaves the ~ if that has none either.
        home = os.path.expanduser("~") if os.environ.get("HOME") != "" else ""
        base = os.path.join(home, ".cache")
    return os.path.join(base, "pykvm") if os.path.isabs(base) else ""
