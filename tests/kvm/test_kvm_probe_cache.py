"""The probe's answer is kept, and used only on the host where it was found."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.kvm import probe as probing
from pykvm.kvm import probe_cache
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.probe_cache import host_traits, traits_file
from pykvm.kvm.system import Kvm
from pykvm.lean.records import replace

pytestmark = pytest.mark.kvm

FOUND = HostTraits(syscall_works=False, instructions_complete=False)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Kvm]:
    """Each probe appends its Kvm here and finds FOUND; the file is in tmp_path/cache."""
    made: list[Kvm] = []

    def probe(kvm: Kvm) -> HostTraits:
        made.append(kvm)
        return FOUND

    monkeypatch.setenv("PYKVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probing, "probe", probe)
    return made


def asked() -> HostTraits:
    """The answer that a new process would get."""
    with Kvm.open() as kvm:
        return host_traits(kvm)


def test_a_host_is_probed_once(probes: list[Kvm]) -> None:
    assert [asked(), asked(), asked()] == [FOUND] * 3
    assert len(probes) == 1
    assert [path.name for path in Path(traits_file()).parent.iterdir()] == ["host-traits"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "0",
        lambda text: text[:-1] + "2",
        lambda text: text.replace("pykvm host traits 1", "pykvm host traits 0"),
        lambda text: text.replace("\n", "\n\n", 1),
        lambda text: "é" + text,
        lambda text: text * 1000,
    ],
)
def test_a_damaged_file_is_ignored(probes: list[Kvm], change: Callable[[str], str]) -> None:
    asked()
    file = Path(traits_file())
    good = file.read_text()
    file.write_text(change(good))
    assert asked() == FOUND
    assert len(probes) == 2
    assert file.read_text() == good


def test_a_changed_host_is_probed_again(probes: list[Kvm], monkeypatch: pytest.MonkeyPatch) -> None:
    asked()
    real = Kvm.supported_cpuid

    def changed(kvm: Kvm) -> list[CpuidEntry]:
        return [
            replace(leaf, ecx=leaf.ecx ^ 1) if leaf.function == 1 else leaf for leaf in real(kvm)
        ]

    monkeypatch.setattr(Kvm, "supported_cpuid", changed)
    asked()
    assert len(probes) == 2


def test_the_key_does_not_depend_on_the_cpu_that_executes_cpuid(
    probes: list[Kvm], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked()
    real = Kvm.supported_cpuid

    def elsewhere(kvm: Kvm) -> list[CpuidEntry]:
        return [
            replace(leaf, ebx=leaf.ebx ^ 1 << 24) if leaf.function == 1 else leaf
            for leaf in real(kvm)
        ]

    monkeypatch.setattr(Kvm, "supported_cpuid", elsewhere)
    asked()
    assert len(probes) == 1


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_an_answer_that_cannot_be_kept_is_probed_each_time(
    probes: list[Kvm], tmp_path: Path, kind: str
) -> None:
    if kind == "a folder":
        Path(traits_file()).mkdir(parents=True)
    else:
        (tmp_path / "cache").write_text("in the way")
    assert [asked(), asked()] == [FOUND] * 2
    assert len(probes) == 2


def test_no_answer_is_kept_without_a_boot_id(
    probes: list[Kvm], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(kvm: Kvm) -> str:
        raise PermissionError

    monkeypatch.setattr(probe_cache, "_key", unreadable)
    assert [asked(), asked()] == [FOUND] * 2
    assert len(probes) == 2
    assert not Path(traits_file()).exists()
