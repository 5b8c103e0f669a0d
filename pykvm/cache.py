"""The folder in which pykvm keeps builds and facts about the host for later runs."""

import os


def cache_folder() -> str:
    """``$PYKVM_CACHE``, or pykvm's folder in the user's cache; "" if the user has neither.

    A relative ``XDG_CACHE_HOME`` or home directory is ignored, because its meaning depends on
    the working directory (XDG Base Directory Specification).
    """
    if chosen := os.environ.get("PYKVM_CACHE"):
        return chosen
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        # Without HOME, expanduser asks the list of users, and keeps the ~ if that has no entry.
        home = os.path.expanduser("~") if os.environ.get("HOME") != "" else ""
        base = os.path.join(home, ".cache")
    return os.path.join(base, "pykvm") if os.path.isabs(base) else ""
