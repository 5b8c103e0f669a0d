"""The sandbox's list of system calls and its documentation, and parts that the host lacks."""

import errno
import os
import re

import pytest
from checkout import ROOT

from pykvm.errors import HostError, PykvmError
from pykvm.sandbox import Confinement, confine, confinement, landlock, seccomp
from pykvm.sandbox.rules import ABSENT, allowed

REFERENCE = ROOT / "docs" / "reference" / "sandbox.md"
FORBIDDEN = {
    "open", "openat", "openat2", "creat", "execve", "execveat", "fork", "vfork", "clone3", "socket",
    "connect", "bind", "ptrace", "process_vm_writev", "mount", "unshare", "setns", "bpf", "keyctl",
    "setuid", "capset", "chmod", "rename", "link", "symlink", "pkey_mprotect", "io_uring_register",
}  # fmt: skip


def calls(**needs: bool) -> set[str]:
    return {name for rule in allowed(1, **needs) for name in rule.calls}


def test_the_documented_list_is_the_list():
    table = REFERENCE.read_text().split("## System calls")[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row[2])]
    rules = allowed(1, monitor=True, rings=True, snapshots=True)
    listed = [name for rule in rules for name in rule.calls]
    assert sorted(documented) == sorted(listed)


def test_calls_that_open_start_or_connect_are_never_allowed():
    assert not calls(monitor=True, rings=True) & FORBIDDEN
    assert set(ABSENT) <= FORBIDDEN


def test_a_run_may_make_only_the_system_calls_that_its_options_need():
    least = calls(monitor=False, rings=False)
    assert {"accept4", "unlink"} & least == set()
    assert calls(monitor=False, rings=True) - least == {"io_uring_setup", "io_uring_enter"}
    assert calls(monitor=True, rings=False) - least >= {"accept4", "unlink"}
    assert calls(monitor=False, rings=False, snapshots=True) - least >= {"openat", "mkdir"}


def test_without_landlock_nothing_may_make_files(harmless, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(seccomp, "load", lambda rules: loaded.append(list(rules)))
    confine(snapshots=tmp_path)

    def missing(*folders: object) -> None:
        raise HostError("Landlock is not available: this kernel does not have it")

    monkeypatch.setattr(landlock, "restrict", missing)
    confine(snapshots=tmp_path)
    names = [{name for rule in rules for name in rule.calls} for rules in loaded]
    assert "openat" in names[0]
    assert "openat" not in names[1]


def test_signals_go_to_the_process_itself():
    only = {rule.only for rule in allowed(4711, monitor=False, rings=False) if "kill" in rule.calls}
    assert [(o.argument, o.values) for o in only if o] == [(0, (4711,))]


@pytest.mark.parametrize(
    ("version", "rights", "net", "scoped"),
    [(1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 3, 0), (5, 16, 3, 0), (6, 16, 3, 3)],
)
def test_landlock_forbids_what_its_version_knows(version, rights, net, scoped):
    expected = ((1 << rights) - 1, net, scoped)
    assert landlock.ruleset(version) == b"".join(word.to_bytes(8, "little") for word in expected)
    assert landlock.ruleset(99) == landlock.ruleset(6)


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSYS, "this kernel does not have it"),
        (errno.EOPNOTSUPP, "lsm="),
        (errno.EPERM, "container"),
        (errno.E2BIG, "too long"),
    ],
)
def test_a_host_without_landlock_says_why(monkeypatch, number, word):
    def refused(*arguments: object) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(landlock, "system_call", refused)
    for call in (landlock.version, landlock.restrict):
        with pytest.raises(HostError, match=word):
            call()


def test_a_kernel_without_filters_says_so(monkeypatch):
    def refused(*arguments: object) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(seccomp, "system_call", refused)
    with pytest.raises(HostError, match="no filters"):
        seccomp.check()


class Library:
    """Stands in for libseccomp; each function succeeds but the one named in ``failing``."""

    def __init__(self, **failing: int) -> None:
        self.failing = failing
        self.released = 0

    def __getattr__(self, name: str) -> object:
        def function(*arguments: object) -> int:
            self.released += name == "seccomp_release"
            return self.failing.get(name, 1)

        return function


@pytest.mark.parametrize(
    ("failing", "word"),
    [
        ({"seccomp_init": 0}, "no memory"),
        ({"seccomp_syscall_resolve_name": -1}, "too old to know"),
        ({"seccomp_rule_add_array": -errno.ENOMEM}, os.strerror(errno.ENOMEM).lower()),
        ({"seccomp_load": -errno.ECANCELED}, "refuses the filter"),
        ({"seccomp_load": -errno.EINVAL}, "no filters"),
    ],
)
def test_a_filter_that_cannot_be_loaded_says_why(monkeypatch, failing, word):
    library = Library(**failing)
    monkeypatch.setattr(seccomp, "keep_library", lambda name: library)
    with pytest.raises(HostError, match=word):
        seccomp.load(allowed(1, monitor=True, rings=True))
    assert library.released == (0 if "seccomp_init" in failing else 1)


def test_a_library_too_old_for_attributes_is_good_enough(monkeypatch):
    library = Library()
    monkeypatch.setattr(seccomp, "keep_library", lambda name: library)

    def unknown(context: object, attribute: int, value: object) -> int:
        return 0 if attribute <= 2 else -errno.EEXIST

    library.seccomp_attr_set = unknown
    seccomp.load(allowed(1, monitor=False, rings=False))


def test_without_the_library_there_is_advice(monkeypatch):
    def absent(name: str) -> None:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(seccomp, "keep_library", absent)
    with pytest.raises(HostError, match="install libseccomp2"):
        seccomp.load(())


@pytest.fixture
def harmless(monkeypatch):
    """Nothing of this confines the tests' own process."""
    monkeypatch.setattr(confinement, "_limit_resources", lambda: None)
    monkeypatch.setattr(confinement, "_forbid_new_privileges", lambda: None)
    monkeypatch.setattr(confinement.os, "listdir", lambda path: ["1"])
    monkeypatch.setattr(landlock, "restrict", lambda removable, writable: None)
    monkeypatch.setattr(seccomp, "load", lambda rules: None)


def missing(*arguments: object) -> None:
    raise HostError("it is not available")


def test_a_missing_part_is_reported_without_insisting(harmless, monkeypatch):
    monkeypatch.setattr(landlock, "restrict", missing)
    parts = confine().parts
    assert parts.pop("landlock") == "it is not available"
    assert parts == {"limits": "", "no_new_privs": "", "seccomp": ""}


def test_insisting_gives_every_part_or_an_error(harmless, monkeypatch):
    assert set(confine(insist=True).parts.values()) == {""}
    monkeypatch.setattr(seccomp, "load", missing)
    with pytest.raises(HostError, match="--sandbox=on: it is not available") as caught:
        confine(insist=True)
    assert "doctor" in caught.value.hint


def test_threads_that_would_go_free_are_noticed(harmless, monkeypatch):
    monkeypatch.setattr(confinement, "PATIENCE_SECONDS", 0)
    monkeypatch.setattr(confinement.os, "listdir", lambda path: ["1", "2"])
    with pytest.raises(PykvmError, match="already has threads; use --sandbox=off with a debugger"):
        confine()


def test_threads_that_are_about_to_end_are_awaited(harmless, monkeypatch):
    seen = [["1", "2"], ["1", "2"], ["1"]]
    monkeypatch.setattr(confinement.os, "listdir", lambda path: seen.pop(0))
    assert set(confine(insist=True).parts.values()) == {""}


def test_the_text_names_the_parts_that_hold_and_the_missing_ones():
    parts = {"limits": "", "landlock": "", "seccomp": "there is no library"}
    assert str(Confinement(parts)) == "limits, landlock; there is no library"
    assert str(Confinement({"limits": "no"})) == "nothing; no"
