"""The kernel, initrd and command line of a configuration: bundles by name and by folder."""

import json
from pathlib import Path

import pytest

from pykvm.errors import UsageError
from pykvm.machine import bundle
from pykvm.machine.bundle import find_bundle
from pykvm.machine.config import DEFAULT_MEMORY, MIB, ConsoleMode, MachineConfig
from pykvm.machine.guest import EMULATED, LINUX, LINUX_DEFAULTS, NATIVE, resolve


def make(folder: Path, name: str = "g", flavours: tuple[str, ...] = (NATIVE, EMULATED), **more):
    """Make a bundle of empty files in ``folder``."""
    folder.mkdir(parents=True)
    entries = {}
    for flavour in flavours:
        (folder / f"k-{flavour}").touch()
        entries[flavour] = {"kernel": f"k-{flavour}", "initrd": "rd", "append": f"is={flavour}"}
    (folder / "rd").touch()
    manifest = {"format": 1, "name": name, "memory_mib": 48, "flavours": entries, **more}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def bundles(tmp_path, monkeypatch) -> Path:
    """An empty folder for pykvm's own bundles, which is not the working directory."""
    monkeypatch.setattr(bundle, "BUNDLES", tmp_path / "bundles")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "bundles"


def test_a_name_wins_over_a_folder(bundles, tmp_path):
    make(bundles / "guest", "ours")
    make(tmp_path / "cwd/guest", "theirs")
    make(tmp_path / "cwd/other", "other")
    assert find_bundle("guest", NATIVE).name == "ours"
    assert find_bundle("./guest", NATIVE).name == "theirs"
    assert find_bundle("other", NATIVE).name == "other"
    assert find_bundle(str(tmp_path / "cwd/other"), NATIVE).name == "other"


@pytest.mark.parametrize("name", [".", "..", "", "../bundles", "./nothing", "no\0name"])
def test_a_path_is_never_the_name_of_a_bundle(bundles, name):
    make(bundles / "guest")
    with pytest.raises(UsageError):
        find_bundle(name, NATIVE)


def test_the_working_directory_can_be_a_guest(bundles, tmp_path, monkeypatch):
    make(bundles / "guest", "ours")
    monkeypatch.chdir(make(tmp_path / "here", "here"))
    assert find_bundle(".", NATIVE).name == "here"


def test_a_bundle_gives_the_wanted_flavour_or_the_one_it_has(bundles):
    make(bundles / "both")
    make(bundles / "one", flavours=(EMULATED,))
    found = find_bundle("both", EMULATED)
    assert found.kernel == bundles / "both/k-emulated"
    assert found.initrd == bundles / "both/rd"
    assert (found.append, found.memory) == ("is=emulated", 48 * MIB)
    assert find_bundle("both", NATIVE).flavour == NATIVE
    assert find_bundle("one", NATIVE).flavour == EMULATED


def test_a_missing_bundled_guest_is_an_error_with_advice(bundles, tmp_path):
    with pytest.raises(UsageError, match=r"not built yet.*make guest"):
        find_bundle("guest", NATIVE)
    bundles.mkdir()
    with pytest.raises(UsageError, match="not built yet"):
        find_bundle("guest", NATIVE)


@pytest.mark.parametrize("missing", ["k-native", "rd"])
def test_a_missing_file_of_the_manifest_is_an_error(bundles, missing):
    (make(bundles / "g") / missing).unlink()
    with pytest.raises(UsageError, match=rf"bundle\.json' names '{missing}', which does not exist"):
        find_bundle("g", NATIVE)


KERNEL = '"name": "x", "flavours": {"native": {"kernel": "k"}}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "it is not an object"),
        ("null", "it is not an object"),
        ("{}", "it has no 'format'"),
        ('{"format": true}', "'format' of it is not a whole number"),
        ('{"format": 2}', "its format is 2, and this pykvm reads format 1"),
        ('{"format": 1, "name": "x"}', "it has no 'flavours'"),
        ('{"format": 1, "flavours": {"native": {"kernel": "k"}}}', "it has no 'name'"),
        ('{"format": 1, "name": "x", "flavours": {}}', "it has no flavour"),
        ('{"format": 1, "name": "x", "flavours": []}', "'flavours' of it is not an object"),
        ('{"format": 1, "name": "x", "flavours": {"native": null}}', "'native' is not an object"),
        ('{"format": 1, "name": "x", "flavours": {"native": {}}}', "'native' has no 'kernel'"),
        (f'{{"format": 1, {KERNEL}, "memory_mib": "x"}}', "'memory_mib' of it is not a whole"),
        (f'{{"format": 1, {KERNEL}, "memory_mib": 1e999}}', "'memory_mib' of it is not a whole"),
        (f'{{"format": 1, {KERNEL}, "memory_mib": -1}}', "'memory_mib' of it is not a whole"),
    ],
)
def test_the_error_names_the_mistake_in_a_manifest(bundles, text, why):
    (bundles / "g").mkdir(parents=True)
    (bundles / "g/bundle.json").write_text(text)
    with pytest.raises(UsageError, match=r"g/bundle\.json") as caught:
        find_bundle("g", NATIVE)
    assert why in caught.value.message


def test_an_unreadable_manifest_is_an_error(bundles):
    (bundles / "g/bundle.json").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be read"):
        find_bundle("g", NATIVE)


def test_a_bundle_gets_its_own_command_line_and_memory(bundles):
    make(bundles / "g")
    config = MachineConfig(
        guest="g", append="user", console=ConsoleMode.PIPE, console_size=(24, 80), agent=True
    )
    guest = resolve(config, NATIVE)
    line = "is=native pykvm.console=pipe pykvm.size=24x80 pykvm.agent=1"
    line += " pykvm.mailbox=0x2f80000,524288,0xfed00000"
    assert guest.command_line("pvh", ["host"]) == f"{line} user"
    assert guest.command_line(LINUX, ["host"]) == f"{line} host user"
    assert (guest.memory, guest.is_bundle) == (48 * MIB, True)


def test_a_kernel_alone_has_no_initrd_and_linux_gets_defaults(tmp_path):
    guest = resolve(MachineConfig(kernel=tmp_path / "k", append="user"), NATIVE)
    assert guest.initrd is None
    assert guest.memory == DEFAULT_MEMORY
    assert guest.command_line(LINUX) == f"{LINUX_DEFAULTS} user"
    assert guest.command_line("pvh") == "user"
    assert resolve(MachineConfig(kernel=tmp_path / "k"), NATIVE).command_line("pvh") == ""


@pytest.mark.parametrize(
    ("append", "expected"),
    [
        ("", "clearcpuid=7,8 other=1"),
        ("-- init's", "clearcpuid=7,8 other=1 -- init's"),
        ("clearcpuid=304", "clearcpuid=7,8 other=1 clearcpuid=304,7,8"),
        ("a clearcpuid=1,2 b", "clearcpuid=7,8 other=1 a clearcpuid=1,2,7,8 b"),
        ("noclearcpuid=1", "clearcpuid=7,8 other=1 noclearcpuid=1"),
    ],
)
def test_the_users_options_come_last_and_keep_those_that_the_host_needs(append, expected):
    guest = resolve(MachineConfig(kernel=Path("k"), append=append), EMULATED)
    line = guest.command_line(LINUX, ["clearcpuid=7,8", "other=1"])
    assert line == f"{LINUX_DEFAULTS} {expected}"


def test_a_users_kernel_and_initrd_replace_the_bundles(bundles, tmp_path):
    make(bundles / "g")
    config = MachineConfig(guest="g", kernel=tmp_path / "k", memory=32 * MIB)
    guest = resolve(config, NATIVE)
    assert (guest.kernel, guest.initrd) == (tmp_path / "k", bundles / "g/rd")
    assert guest.memory == 32 * MIB
    assert resolve(MachineConfig(guest="g", initrd=b"bytes"), NATIVE).initrd == b"bytes"


def test_a_configuration_without_a_kernel_is_an_error():
    with pytest.raises(UsageError, match="no kernel"):
        resolve(MachineConfig(initrd=b"x"), NATIVE)


def test_a_slow_combination_is_announced(bundles, tmp_path):
    make(bundles / "both")
    make(bundles / "fast", flavours=(NATIVE,))
    make(bundles / "slow", flavours=(EMULATED,))
    for name, flavour, notice in (
        ("both", EMULATED, False),
        ("both", NATIVE, False),
        ("fast", NATIVE, False),
        ("fast", EMULATED, True),
        ("slow", NATIVE, False),
    ):
        assert bool(resolve(MachineConfig(guest=name), flavour).notice) is notice
    config = MachineConfig(guest="fast", kernel=tmp_path / "mine")
    assert resolve(config, EMULATED).notice == ""


@pytest.mark.parametrize(("cpus", "said"), [(1, False), (2, True)])
def test_a_kernel_that_cannot_use_all_cpus_is_mentioned(bundles, cpus, said):
    folder = make(bundles / "g", flavours=(EMULATED,))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["flavours"][EMULATED]["cpus"] = 1
    (folder / "bundle.json").write_text(json.dumps(manifest))
    notice = resolve(MachineConfig(guest="g", cpus=cpus), EMULATED).notice
    assert ("uses 1 of the 2 CPUs" in notice) is said
    own = MachineConfig(guest="g", cpus=cpus, kernel=folder / "k-emulated")
    assert resolve(own, EMULATED).notice == ""


def test_a_foreign_kernel_on_a_host_that_emulates_kernel_code_is_announced(bundles, tmp_path):
    make(bundles / "g")
    for config in (MachineConfig(kernel=tmp_path / "k"), MachineConfig("g", tmp_path / "k")):
        notice = resolve(config, EMULATED).emulation_notice(LINUX)
        assert "emulates kernel code" in notice
        assert resolve(config, EMULATED).emulation_notice("pvh") == ""
    assert resolve(MachineConfig("g"), EMULATED).emulation_notice(LINUX) == ""


@pytest.mark.parametrize(
    ("memory", "place"), [(64 * MIB, 0x3F80000), (5 << 30, 0xBFF80000), (8 * MIB, 0x780000)]
)
def test_a_guest_with_an_agent_has_a_mailbox_at_the_end_of_low_memory(bundles, memory, place):
    make(bundles / "guest")
    guest = resolve(MachineConfig(guest="guest", agent=True, memory=memory), NATIVE)
    assert f"pykvm.mailbox={place:#x},524288,0xfed00000" in guest.options
    assert guest.reserved == 512 * 1024


@pytest.mark.parametrize("options", [{"agent": False}, {"agent": True, "memory": 7 * MIB}])
def test_a_guest_without_an_agent_or_a_tiny_one_has_no_mailbox(bundles, options):
    make(bundles / "guest")
    guest = resolve(MachineConfig(guest="guest", **options), NATIVE)
    assert guest.reserved == 0
    assert not any("mailbox" in option for option in guest.options)
