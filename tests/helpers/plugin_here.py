"""pytest's options for a run with pykvm's plugin."""

from importlib import metadata

_INSTALLED = metadata.entry_points(group="pytest11", name="pykvm")
PLUGIN = () if _INSTALLED else ("-p", "pykvm.pytest_plugin")
"""A checkout that was installed before there was a plugin lacks its entry."""
