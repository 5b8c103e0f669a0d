"""A fragment's line that Kconfig did not take must not go unnoticed."""

from pathlib import Path

import pytest
from recipe import edits, kconfig, kernel

FRAGMENT = """\
# words
CONFIG_64BIT=y
CONFIG_NAME="text with = and spaces"
# CONFIG_SMP is not set
"""


def test_parse_reads_values_and_absences_in_order():
    assert list(kconfig.parse(FRAGMENT).items()) == [
        ("CONFIG_64BIT", "y"),
        ("CONFIG_NAME", '"text with = and spaces"'),
        ("CONFIG_SMP", "n"),
    ]


def test_render_is_the_inverse_of_parse():
    options = kconfig.parse(FRAGMENT)
    assert kconfig.parse(kconfig.render(options)) == options


@pytest.mark.parametrize("line", ["CONFIG_A", "A=y", "select FOO"])
def test_parse_refuses_lines_that_are_not_options(line: str):
    with pytest.raises(ValueError, match="line 1"):
        kconfig.parse(line)


def test_parse_refuses_an_option_set_twice():
    with pytest.raises(ValueError, match="CONFIG_A a second time"):
        kconfig.parse("CONFIG_A=y\n# CONFIG_A is not set\n")


def test_later_fragments_override():
    assert kconfig.merge(["CONFIG_A=y", "# CONFIG_A is not set"]) == {"CONFIG_A": "n"}


def test_an_unknown_choice_that_fell_back_is_named():
    wanted = kconfig.parse("CONFIG_HZ_20=y\n# CONFIG_SMP is not set\n")
    assert kconfig.refused(wanted, "CONFIG_HZ_250=y\n") == ["CONFIG_HZ_20 should be y but is n"]


def test_an_option_switched_on_against_the_fragment_is_named():
    wanted = kconfig.parse("# CONFIG_SMP is not set\n")
    assert kconfig.refused(wanted, "CONFIG_SMP=y\n") == ["CONFIG_SMP should be n but is y"]


@pytest.mark.parametrize("flavour", kernel.FLAVOURS)
def test_the_recipe_has_the_promised_options(flavour: str):
    options = kconfig.merge([f.read_text() for f in kernel.fragments(flavour)])
    promised = (
        "64BIT EXT4_FS SYSFS PROC_FS DEVTMPFS TMPFS IO_URING AIO VIRTIO_PCI VIRTIO_BLK PCI_MSI "
        "CPU_SUP_INTEL CPU_SUP_AMD SERIAL_8250_CONSOLE DEVPORT BLK_DEV_INITRD PVPANIC_PCI "
        "MAGIC_SYSRQ PVH"
    )
    for name in promised.split():
        assert options[f"CONFIG_{name}"] == "y", name
    assert options["CONFIG_SERIAL_8250_RUNTIME_UARTS"] == "2"


def test_edits_refuse_a_source_that_has_changed(tmp_path: Path):
    edit = edits.Edit("file", "old", "new", "a reason")
    (tmp_path / "file").write_text("old and old")
    with pytest.raises(ValueError, match="2 times, not once"):
        edits.apply(tmp_path, (edit,))
    (tmp_path / "file").write_text("the old one")
    edits.apply(tmp_path, (edit,))
    assert (tmp_path / "file").read_text() == "the new one"
