"""The cache is in the folder that the user chose, and nowhere else."""

import os
import pwd
from pathlib import Path

import pytest

from pykvm.bare import build_bare_guest
from pykvm.cache import cache_folder
from pykvm.errors import UsageError


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYKVM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is not in the list of users."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"PYKVM_CACHE": "here", "HOME": "/h"}, "here"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/pykvm"),
        ({"XDG_CACHE_HOME": "x", "HOME": "/h"}, "/h/.cache/pykvm"),
        ({"HOME": "/h"}, "/h/.cache/pykvm"),
        ({"HOME": "h"}, ""),
        ({"HOME": ""}, ""),
        ({}, ""),
    ],
)
@pytest.mark.usefixtures("homeless")
def test_the_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == folder


def test_without_HOME_the_list_of_users_counts() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert cache_folder() == f"{home}/.cache/pykvm"


@pytest.mark.usefixtures("homeless")
def test_the_bare_guest_of_a_user_without_a_home_needs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no home.*PYKVM_CACHE"):
        build_bare_guest()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"stored in '.*/file': not a directory; set PYKVM_CACHE"):
        build_bare_guest()
