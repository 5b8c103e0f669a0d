"""Failures that the user can do something about."""


class BuildError(Exception):
    """One sentence or two: what failed, why, and what to do next. Shown without a traceback."""
