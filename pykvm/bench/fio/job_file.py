"""fio's job files: those that pykvm writes, and changes to those of a user. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

GLOBAL = "global"
_COMMENTS = ("#", ";")
_DIRECTIONS = ("rw", "readwrite")
_FILES = ("include", "read_iolog")
"""The options whose values are files that fio reads."""

Settings = Mapping[str, str]
"""Options of a job by name."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Jobs that run one after the other: the options of all, and the options of each by name.

    ``seconds`` is the length of each job, and ``emulated_seconds`` the length where the host
    emulates the guest's kernel.
    """

    text: str
    common: Settings
    jobs: Mapping[str, Settings]
    seconds: int
    emulated_seconds: int


def _crystal() -> dict[str, Settings]:
    shapes = (("SEQ1M", "", "1m", (8, 1)), ("RND4K", "rand", "4k", (32, 1)))
    return {
        f"{name}-Q{depth}-{word}": {"rw": kind + word, "bs": size, "iodepth": str(depth)}
        for name, kind, size, depths in shapes
        for depth in depths
        for word in ("read", "write")
    }


PRESETS: Mapping[str, Preset] = {
    "ssd-test": Preset(
        "4 KiB at depth 4: read, randread, write, randwrite",
        {"bs": "4k", "iodepth": "4"},
        {
            "seq-read": {"rw": "read"},
            "rand-read": {"rw": "randread"},
            "seq-write": {"rw": "write"},
            "rand-write": {"rw": "randwrite"},
        },
        10,
        5,
    ),
    "crystal": Preset(
        "SEQ1M at depths 8 and 1, RND4K at depths 32 and 1",
        {},
        _crystal(),
        5,
        3,
    ),
    "fsync": Preset(
        "4 KiB writes, each followed by fdatasync (append) or fsync (random)",
        {"bs": "4k", "iodepth": "1"},
        {
            "append": {"rw": "write", "fdatasync": "1"},
            "random": {"rw": "randwrite", "fsync": "1"},
        },
        10,
        5,
    ),
}


def preset_job(preset: Preset, common: Settings, seconds: str) -> str:
    """The job file of ``preset``. ``common`` are more options of all jobs."""
    timed = {"time_based": "1", "runtime": seconds}
    return job_text(
        {**common, **preset.common, **timed, "stonewall": "1"},
        preset.jobs,
    )


def job_text(common: Settings, jobs: Mapping[str, Settings]) -> str:
    """A job file with the options ``common`` of all ``jobs``."""
    sections = {GLOBAL: common, **jobs}
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in settings.items())
        for name, settings in sections.items()
    )


def with_settings(text: str, settings: Settings) -> str:
    """The job file ``text`` with ``settings`` in place of the same options of each job.

    An absolute ``filename`` also takes away ``directory``, which fio would put before it. fio
    takes the last value of most options, so the settings come last in each job, and win over
    other names of an option, too.
    """
    if not settings:
        return text
    added = [f"{key}={value}" for key, value in settings.items()]
    gone = set(settings)  # fio would add the files of several filename= together
    gone |= {"directory"} if settings.get("filename", "").startswith("/") else set()
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if (name := _section(line)) is not None:
            lines += added if section not in ("", GLOBAL) else []
            section = name
        elif _option(line)[0] in gone:
            continue
        lines.append(line)
    lines += added if section not in ("", GLOBAL) else []
    return "\n".join(lines) + "\n"


def may_write(text: str) -> bool:
    """True unless every job only reads, as far as the job file ``text`` tells."""
    for key, value in _options(text):
        if key in _FILES:
            return True
        if key in _DIRECTIONS and value.split(":")[0] not in ("read", "randread"):
            return True
    return False


def named_files(text: str) -> Sequence[str]:
    """The names of the files that fio reads for the job file ``text``."""
    return [value for key, value in _options(text) if key in _FILES and value]


def has_jobs(text: str) -> bool:
    """True if the job file ``text`` has a section for a job."""
    return any(_section(line) not in (None, GLOBAL) for line in text.splitlines())


def _options(text: str) -> Iterator[tuple[str, str]]:
    return (_option(line) for line in text.splitlines() if _section(line) is None)


def _section(line: str) -> str | None:
    """The name of the section that ``line`` begins."""
    line = line.strip()
    return line[1 : line.index("]")] if line.startswith("[") and "]" in line else None


def _option(line: str) -> tuple[str, str]:
    line = line.strip()
    if line.startswith(_COMMENTS):
        return "", ""
    if line.startswith("include "):
        return "include", line.removeprefix("include ").strip()
    key, _, value = line.partition("=")
    return key.strip().lower(), value.strip()
