"""Paths on the command line, as argparse types: argparse names the option of a wrong path."""

from pykvm.lean.typing_names import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def path_text(text: str) -> str:
    """``text``, a path or a stand-in such as ``-``; ArgumentTypeError if it is empty."""
    if not text:  # Path("") would be the current folder.
        import argparse  # Imported only for the error.

        raise argparse.ArgumentTypeError("the path is empty")
    return text


def parse_path(text: str) -> "Path":
    """The path in ``text``, which need not exist."""
    from pathlib import Path

    return Path(path_text(text))
