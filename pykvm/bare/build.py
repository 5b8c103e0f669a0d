"""Builds the bare guest with gcc and make, once per content of its sources."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pykvm.cache import cache_folder
from pykvm.errors import UsageError, reason_of
from pykvm.host.limits import THREADS

SOURCES = Path(__file__).resolve().parents[2] / "guest" / "bare"
"""The sources in a checkout; a wheel has none."""
NAME = "bare.elf"
_TIMEOUT_SECONDS = 120.0


def build_bare_guest(output: Path | None = None) -> Path:
    """The path of an up-to-date ``bare.elf``, which is built unless the cache has it.

    With ``output`` it is copied to that file, and the result is ``output``. UsageError if the
    sources or a compiler are missing, or if the build fails.
    """
    if not (SOURCES / "Makefile").is_file():
        raise UsageError("an installed pykvm lacks the bare guest's sources", "use a checkout")
    hint = "set PYKVM_CACHE to a writable folder"
    if not (folder := cache_folder()):
        raise UsageError("this user has no home folder for the bare guest", hint)
    built = Path(folder) / "bare" / _key() / NAME
    try:
        if not built.is_file():
            _build_into(built)
    except OSError as error:
        reason = reason_of(error)
        raise UsageError(f"the bare guest cannot be stored in '{folder}': {reason}", hint) from None
    if output is None:
        return built
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(built, output)
    return output


def _key() -> str:
    """A digest of everything that the build depends on."""
    digest = hashlib.sha256(_compiler().encode())
    for source in sorted(path for path in SOURCES.iterdir() if path.is_file()):
        data = source.read_bytes()
        digest.update(f"{source.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:20]


def _compiler() -> str:
    try:
        done = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
    except BlockingIOError:
        raise UsageError("the C compiler cannot be started: too many processes", THREADS) from None
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(
            "the bare guest needs a C compiler", "install gcc, binutils and make"
        ) from None
    return done.stdout


def _build_into(built: Path) -> None:
    """Build in a folder beside the result and rename it, so that no reader sees half a file."""
    root = built.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        command = ["make", "-s", "-C", str(SOURCES), f"OUT={scratch}"]
        # If make runs pykvm, its flags and job slots must not reach this make.
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                env=clean,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"the bare guest cannot be built: {error}", "install make") from None
        if done.returncode:
            raise UsageError(
                f"the bare guest does not build: {'; '.join(done.stderr.splitlines())}",
                "it needs gcc and binutils for x86-64",
            )
        built.parent.mkdir(exist_ok=True)
        os.replace(Path(scratch) / NAME, built)
