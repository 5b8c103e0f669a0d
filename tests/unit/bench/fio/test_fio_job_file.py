"""fio's job files: presets, settings of the command line, and what they say."""

from argparse import Namespace
from pathlib import Path

import pytest

from pykvm.bench.fio.job_file import (
    PRESETS,
    has_jobs,
    job_text,
    may_write,
    named_files,
    preset_job,
    with_settings,
)
from pykvm.cli.bench.fio.options import Jobs, jobs_of, parser
from pykvm.errors import UsageError

USERS = """\
; a disk of mine
[global]
directory=/mnt
filename=file
size=10g

[one]
rw=read
size = 1g

[two]
rw=randwrite
"""


def sections(text: str) -> dict[str, dict[str, str]]:
    """The options of each section."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            found[line[1:-1]] = mine = {}
        elif "=" in line and not line.startswith(";"):
            key, _, value = line.partition("=")
            assert key not in mine
            mine[key.strip()] = value.strip()
    return found


def options(*arguments: str) -> Namespace:
    return parser().parse_args(arguments)


def jobs(*arguments: str, disks: int = 1, emulated: bool = False) -> Jobs:
    return jobs_of(options(*arguments), disks, emulated)


def test_a_file_without_settings_stays_as_it_is():
    assert with_settings(USERS, {}) == USERS


def test_settings_replace_the_options_of_each_job():
    found = sections(with_settings(USERS, {"filename": "/dev/vda", "size": "16M"}))
    assert found == {
        "global": {},
        "one": {"rw": "read", "filename": "/dev/vda", "size": "16M"},
        "two": {"rw": "randwrite", "filename": "/dev/vda", "size": "16M"},
    }


def test_a_relative_file_keeps_its_folder():
    assert sections(with_settings(USERS, {"filename": "other"}))["global"]["directory"] == "/mnt"


def test_comments_stay():
    assert with_settings(USERS, {"size": "1M"}).startswith("; a disk of mine\n[global]\n")


@pytest.mark.parametrize(
    ("text", "writes"),
    [
        (USERS, True),
        ("[a]\nrw=randread\n", False),
        ("[a]\nreadwrite=read:8\n[b]\n# rw=write\n", False),
        ("[a]\nreadwrite=rw\n", True),
        ("[a]\nrw=trim\n", True),
        ("include more.fio\n[a]\nrw=read\n", True),
    ],
)
def test_jobs_that_may_write(text: str, writes: bool):
    assert may_write(text) is writes


def test_files_that_a_job_names():
    assert named_files("include a.fio\n[x]\nread_iolog=b.log\n;include c\n") == ["a.fio", "b.log"]


def test_a_file_with_only_global_options_has_no_job():
    assert has_jobs(USERS)
    assert not has_jobs("[global]\nbs=4k\n")


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_runs_its_jobs_one_after_the_other(name: str):
    found = sections(preset_job(PRESETS[name], {"filename": "/dev/vda"}, "3"))
    common = found.pop("global")
    assert found.keys() == PRESETS[name].jobs.keys()
    assert (common["stonewall"], common["runtime"], common["filename"]) == ("1", "3", "/dev/vda")
    assert all("rw" in job for job in found.values())


def test_crystal_has_both_directions_of_its_four_shapes():
    assert len(PRESETS["crystal"].jobs) == 8
    assert PRESETS["crystal"].jobs["RND4K-Q32-write"] == {
        "rw": "randwrite",
        "bs": "4k",
        "iodepth": "32",
    }


def test_a_job_from_options():
    found = sections(jobs("--rw", "randread", "--iodepth", "8", "--batch", "4").text)
    job = found["randread-4k"]
    assert job["rw"] == "randread"
    assert (job["iodepth"], job["iodepth_batch"], job["bs"]) == ("8", "4", "4k")
    assert (job["filename"], job["direct"], job["runtime"]) == ("/dev/vda", "1", "10")


def test_a_preset_has_its_own_kinds():
    with pytest.raises(UsageError, match="--preset and --rw exclude each other"):
        jobs("--preset", "crystal", "--rw", "read")
    assert "randread" in jobs("--preset", "crystal", "--bs", "8k").text


def test_a_size_replaces_the_time():
    text = jobs("--rw", "read", "--size", "1M").text
    assert "size=1M" in text
    assert "runtime" not in text


def test_jobs_are_shorter_where_kernel_code_is_emulated():
    assert "runtime=5" in jobs("--rw", "read", emulated=True).text
    assert "runtime=5" in jobs(emulated=True).text


def test_several_disks_are_used_together():
    assert "filename=/dev/vda:/dev/vdb" in jobs(disks=2).text


def test_verification_covers_the_whole_disk():
    text = jobs("--verify").text
    assert "verify=crc32c" in text
    assert "size" not in text
    assert "runtime" not in text


def test_a_users_file_with_the_files_that_it_names(tmp_path: Path):
    (tmp_path / "more.fio").write_text("bs=8k\n")
    (tmp_path / "mine.fio").write_text("[a]\nrw=read\ninclude more.fio\n")
    found = jobs(str(tmp_path / "mine.fio"), "--set", "runtime=5")
    assert found.files == {"more.fio": b"bs=8k\n"}
    assert found.text == "[a]\nrw=read\ninclude more.fio\nruntime=5\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "cristal"], "did you mean 'crystal'"),
        (["--preset", "fsync", "--verify"], "exclude each other"),
        (["--set", "nothing"], "--set cannot be 'nothing'"),
        (["missing.fio"], "cannot be read: no such file"),
    ],
)
def test_errors_of_usage(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        jobs(*arguments)


def test_files_outside_the_folder_of_the_job_are_refused(tmp_path: Path):
    file = tmp_path / "mine.fio"
    file.write_text("include ../secret\n[a]\n")
    with pytest.raises(UsageError, match="outside its folder"):
        jobs(str(file))


def test_the_text_of_a_job_file():
    assert job_text({"bs": "4k"}, {"a": {"rw": "read"}}) == "[global]\nbs=4k\n\n[a]\nrw=read\n"
