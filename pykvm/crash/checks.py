"""Checks of a survivor on the host: of the filesystem with its own tools, and of its content."""

import shutil
import subprocess
from collections.abc import Callable
from typing import Final

from pykvm.errors import HostError, shown

SECONDS: Final = 60.0
"""A tool that takes longer has failed."""
_MOST: Final = 4000
"""Characters of a tool's output that a failure keeps."""
_UNCORRECTED = 4
"""e2fsck's bit for errors that it left; higher bits are failures of e2fsck itself."""


class Survivor:
    """The disk after a power cut, as a check sees it.

    ``path`` is the image. A check may write to it. ``marks`` are the labels of the marks before
    the cut, in their order: the workload had reached them. The methods read the ext4 filesystem on
    the disk. Let :func:`ext4` come before, because it replays the journal.
    """

    def __init__(self, path: str, marks: list[str]) -> None:
        self.path = path
        self.marks = marks

    def exists(self, name: str) -> bool:
        """True if the ext4 filesystem on the disk has a file or folder ``name``."""
        return "Inode:" in self._debugfs("stat", name)[0]

    def read(self, name: str) -> bytes:
        """The content of its file ``name``. AssertionError if there is none."""
        content, problem = self._raw("cat", name)
        assert content or self.exists(name), f"{name} is missing: {problem}"
        return content

    def listdir(self, name: str = "/") -> list[str]:
        """The names in its folder ``name``, sorted, without ``.`` and ``..``."""
        lines = self._debugfs("ls -p", name)[0].splitlines()
        names = [line.split("/")[5] for line in lines if line.count("/") > 5]
        return sorted(name for name in names if name not in ("", ".", ".."))

    def _debugfs(self, command: str, name: str) -> tuple[str, str]:
        output, problem = self._raw(command, name)
        return output.decode("utf-8", "surrogateescape"), problem

    def _raw(self, command: str, name: str) -> tuple[bytes, str]:
        if not name.startswith("/") or '"' in name or "\n" in name:
            raise ValueError(f"{name!r} is no absolute name of a file")
        done = _run([_tool("debugfs"), "-R", f'{command} "{name}"', self.path])
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        return done.stdout, " ".join(lines[1:])  # the first line is the version


Check = Callable[[Survivor], object]
"""Raises AssertionError if the survivor is wrong. Any other exception ends the exploration."""


def ext4(survivor: Survivor) -> None:
    """Replay the journal (``e2fsck -p``), then examine the filesystem (``e2fsck -fn``).

    AssertionError if either finds errors that it would not repair unasked.
    """
    tool = _tool("e2fsck")
    repaired = _run([tool, "-p", survivor.path])
    assert 0 <= repaired.returncode < _UNCORRECTED, f"e2fsck -p: {_words(repaired, survivor)}"
    examined = _run([tool, "-fn", survivor.path])
    assert examined.returncode == 0, f"e2fsck -fn: {_words(examined, survivor)}"


def debugfs(path: str, command: str) -> str:
    """The output of a command of debugfs about the image at ``path``."""
    done = _run([_tool("debugfs"), "-R", command, path])
    return done.stdout.decode("utf-8", "surrogateescape")


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{command[0]} did not end within {SECONDS:.0f} s") from None


def _tool(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise HostError(f"the tool {name} is missing", "install it (Debian: e2fsprogs)")
    return found


def _words(done: "subprocess.CompletedProcess[bytes]", survivor: Survivor) -> str:
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    # Each copy has a path of its own, which tells the reader nothing.
    text = text.replace(survivor.path, "disk")
    return shown(" ".join(text.split()), most=_MOST)
