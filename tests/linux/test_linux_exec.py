"""``--exec`` in the Linux guest: streams, statuses, and how a Linux guest's run ends."""

import json
import os
import subprocess

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.linux]


def test_streams_are_separate_and_binary_safe(boot):
    data = bytes(range(256)) * 40
    done = boot("--exec", "cat; echo complaint >&2; exit 7", stdin=data, check=7)
    assert done.stdout == data
    assert done.stderr == b"complaint\n"


def test_a_boot_with_a_disk_needs_64_mib(boot, tmp_path):
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(65536))
    options = ["--json", "--cold", "-m", "64M", "--disk", str(disk)]
    done = boot(*options, "--exec", "cat /proc/version /proc/partitions")
    report = json.loads(done.stdout)
    assert report["stdout"]["text"].startswith("Linux version ")
    assert report["stdout"]["text"].endswith(" 64 vda\n")
    assert report["stderr"] == {"text": ""}
    assert report["end"] == "power_off"
    assert report["sandbox"]["limits"] == ""


def test_any_command_any_output_and_input_without_end(boot):
    """Lines, quotes and bytes that are no text; a pipe that nobody closes."""
    lines = [
        rb"""printf '%s\n' 'a\b "$HOME"'""",
        b"printf %s 'gr\xc3\xbc\xff\x80'",
        b"head -c 30000 /dev/zero; exit 5",
    ]
    read, write = os.pipe()
    try:
        done = boot("--exec", os.fsdecode(b"\n".join(lines)), stdin=read, check=5)
    finally:
        os.close(read)
        os.close(write)
    assert done.stdout == b'a\\b "$HOME"\n' + b"gr\xc3\xbc\xff\x80" + bytes(30000)
    assert done.stderr == b""


def test_a_signal_is_128_and_its_number(boot):
    done = boot("--exec", "kill -9 $$", check=137)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_script_on_standard_input_runs_without_prompt_or_echo(boot):
    done = boot(stdin=b"uname -s\nread word <<END\nsecond\nEND\necho $word\nexit 3", check=3)
    assert done.stdout.replace(b"\r\n", b"\n") == b"Linux\nsecond\n"


def test_panic(boot):
    done = boot("--exec", "echo c >/proc/sysrq-trigger", check=126)
    assert b"Kernel panic - not syncing" in done.stderr
    assert b"Call Trace:" in done.stderr
    assert b"sysrq_handle_crash" in done.stderr, "with the functions' names"


def test_panic_without_pvpanic_is_told_from_a_reset(boot):
    """The console's line decides if the kernel never reports to the device."""
    options = ["--cold", "--append", "initcall_blacklist=pvpanic_pci_driver_init"]
    done = boot(*options, "--exec", "echo c >/proc/sysrq-trigger", check=126)
    assert b"Kernel panic - not syncing" in done.stderr


def test_a_script_may_power_off(boot):
    done = boot("--json", stdin=b"poweroff\nsleep 60\n")
    assert b'"end": "power_off"' in done.stdout


HALTING_INIT = """
void _start(void)
{
    /* reboot(LINUX_REBOOT_CMD_POWER_OFF), which without ACPI is a halt */
    long result = 169;
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"(0xfee1deadL), "S"(672274793L), "d"(0x4321fedcL)
                     : "rcx", "r11", "memory");
    for (;;)
        ;
}
"""


def cpio_member(name: str, mode: int, data: bytes) -> bytes:
    """One member of a newc archive (Linux, buffer-format.rst), padded to 4 bytes."""
    path = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    pad = [bytes(-len(part) % 4) for part in (header, data)]
    return header + pad[0] + data + pad[1]


def test_a_halt_without_acpi_is_noticed(boot, tmp_path):
    """A kernel that knows no other way to power off halts for ever."""
    source, program = tmp_path / "init.c", tmp_path / "init"
    source.write_text(HALTING_INIT)
    compiler = ["cc", "-O2", "-static", "-nostdlib", "-fno-stack-protector", "-fcf-protection=none"]
    subprocess.run([*compiler, "-o", str(program), str(source)], check=True)
    initrd = tmp_path / "initrd"
    members = cpio_member("init", 0o100755, program.read_bytes())
    initrd.write_bytes(members + cpio_member("TRAILER!!!", 0, b""))
    done = boot("--json", "--initrd", str(initrd))
    assert b'"end": "halted"' in done.stdout


def test_a_command_may_reset_or_power_off(boot):
    """That is the guest's own doing: 0."""
    done = boot("--json", "--exec", "reboot; sleep 60")
    assert b'"end": "reset"' in done.stdout
    assert b"was reset before the command ended" in done.stderr
    done = boot("--json", "--exec", "poweroff; sleep 60")
    assert b'"end": "power_off"' in done.stdout
    assert done.stderr == b""
