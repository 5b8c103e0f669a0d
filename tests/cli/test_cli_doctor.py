"""The doctor's output for people, for programs and for the Makefile."""

import json
from pathlib import Path

import pytest

from pykvm.cli.doctor.examine import examine
from pykvm.cli.doctor.report import Report, as_object, as_text
from pykvm.cli.doctor.run import run_doctor
from pykvm.errors import UsageError
from pykvm.kvm import constants
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.system import Kvm

NOWHERE = ["--device", "/nonexistent/kvm"]
BROKEN = HostTraits(syscall_works=False, cpl0_mips=1.0)


def test_no_device_ends_with_77_and_advice(capfd):
    assert run_doctor(NOWHERE) == 77
    out, err = capfd.readouterr()
    assert err == ""
    assert "there is no /nonexistent/kvm" in out
    assert "modprobe" in out.split("No guest can run here:")[1]


def test_json_of_a_host_without_kvm(capfd):
    assert run_doctor(["--json", *NOWHERE]) == 77
    found = json.loads(capfd.readouterr().out)
    assert found["usable"] is False
    assert found["traits"] is None
    assert found["flavour"] is None
    assert len(found["problems"]) == 1


def test_flavour_is_unknown_where_nothing_can_be_probed(capfd):
    assert run_doctor(["--flavour", *NOWHERE]) == 0
    assert capfd.readouterr().out == "unknown\n"


def test_a_host_without_kvm_has_no_known_flavour(monkeypatch, tmp_path):
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "bundle.json").write_text('{"flavours": {"emulated": {}}}')
    monkeypatch.setattr("pykvm.cli.doctor.examine.BUNDLES", tmp_path)
    text = as_text(examine(NOWHERE[1]))
    assert "built: emulated; the flavour for this host is unknown" in text


@pytest.mark.kvm
def test_all_outputs_agree_on_this_host(capfd):
    status = run_doctor(["--json"])
    found = json.loads(capfd.readouterr().out)
    assert status == (0 if found["usable"] else 77)
    assert run_doctor([]) == status
    text = capfd.readouterr().out
    assert ("Guests run here" in text) is found["usable"]
    assert all(reason in text for reason in found["assists"])
    assert run_doctor(["--flavour"]) == 0
    assert capfd.readouterr().out.strip() == found["flavour"]
    assert found["flavour"] == ("emulated" if found["needs_assists"] else "native")


@pytest.mark.kvm
def test_a_missing_capability_is_named_with_its_consequence(monkeypatch):
    real = Kvm.check_extension
    monkeypatch.setattr(
        Kvm,
        "check_extension",
        lambda self, cap: 0 if cap == constants.KVM_CAP_IRQFD else real(self, cap),
    )
    report = examine()
    assert not report.usable
    line = next(f for f in report.findings if f.subject == "KVM_CAP_IRQFD")
    assert "cannot interrupt" in line.text
    assert report.capabilities["KVM_CAP_IRQFD"] == 0


@pytest.mark.parametrize(
    ("traits", "verdict"), [(HostTraits(), "at full speed; no"), (BROKEN, "with assists")]
)
def test_verdict(traits, verdict):
    report = Report(traits=traits)
    report.add("subject", "text")
    assert verdict in as_text(report)
    assert as_object(report)["needs_assists"] is traits.needs_assists


def test_lines_are_aligned_and_plain_unless_asked():
    report = Report()
    report.add("short", "one")
    report.fail("a longer subject", "two", "because")
    plain = as_text(report)
    lines = plain.splitlines()[2:4]
    assert lines[0].index("one") == lines[1].index("two")
    assert "\x1b" not in plain
    assert as_text(report, colour=True).count("\x1b[0m") == 2


@pytest.mark.parametrize("argv", [["--jsn"], ["--json", "--flavour"], ["extra"]])
def test_wrong_options_are_usage_errors(argv):
    with pytest.raises(UsageError):
        run_doctor(argv)


@pytest.mark.kvm
@pytest.mark.parametrize(("setting", "mark"), [("[never]", "note"), ("[madvise]", "ok")])
def test_a_host_without_large_pages_gets_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, mark: str
):
    (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr("pykvm.memory.large_pages.SETTING", str(tmp_path / "enabled"))
    (line,) = (f for f in examine().findings if f.subject == "guest memory")
    assert line.mark.value == mark
    assert ("4 KiB pages" in line.text) == (mark == "note")
