"""A store of finished parts, each a folder named by the hash of all that went into it.

A part is built in a temporary folder and moved into its place in one step, so that nobody ever
sees half of one. A lock keeps a second builder from doing the same work at the same time.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .problem import BuildError
from .progress import note


def folder() -> Path:
    """Where the store is: `PYKVM_CACHE`, or the user's cache folder. BuildError if none."""
    base = os.environ.get("PYKVM_CACHE")
    if not base:
        # Relative ones are nobody's: so says the XDG Base Directory Specification.
        home = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(home):
            # An empty HOME is none, though expanduser takes it for the root folder.
            user = os.path.expanduser("~") if os.environ.get("HOME") != "" else ""
            home = os.path.join(user, ".cache")
        if not os.path.isabs(home):
            raise BuildError("this user has no home: set PYKVM_CACHE to a folder for what is built")
        base = str(Path(home) / "pykvm")
    return Path(base) / "guest"


def key(*parts: object) -> str:
    """A hash of everything given, which must be what JSON can hold, or bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


class Cache:
    """The store in `root`, which is created when it is first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str, part_key: str) -> Path:
        """Where the part `name` with this key is or will be."""
        return self.root / f"{name}-{part_key}"

    def build(self, name: str, part_key: str, builder: Callable[[Path], None]) -> Path:
        """The part's folder; `builder` fills a new folder when the store has none."""
        place = self.path(name, part_key)
        if place.is_dir():
            return place
        with self.scratch(name) as scratch:
            result = scratch / "part"
            result.mkdir()
            builder(result)
            try:
                result.rename(place)
            except OSError:
                # Another builder, on another machine that shares the folder, was faster.
                if not place.is_dir():
                    raise
        return place

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A temporary folder on the store's file system, removed at the end."""
        self._create()
        place = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.root))
        try:
            # mkdtemp makes it private; what is built in it is for everybody who may read the store.
            place.chmod(0o755)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the store for one builder; others wait, and are told so."""
        self._create()
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note("Another build of the guest is running; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _create(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(
                f"the cache {self.root} cannot be created: {error.strerror}. "
                "Set PYKVM_CACHE to a folder that can be written"
            ) from error


def write_atomically(file: Path, data: bytes) -> None:
    """Writes a whole file: whoever opens it sees the old contents or the new, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as output:
            output.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).rename(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
