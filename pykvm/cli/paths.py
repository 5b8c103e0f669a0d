"""Paths on the command line: types of argparse, which names the option of a wrong one."""

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def path_text(text: str) -> str:
    """``text``, which is a path or stands for something else, as ``-`` does."""
    if not text:  # which Path would take for the current folder
        import argparse  # which is only there if something is amiss

        raise argparse.ArgumentTypeError("the path is empty")
    return text


def parse_path(text: str) -> "Path":
    """A path, which need not exist."""
    from pathlib import Path

    return Path(path_text(text))
