"""What is in the initial ramdisk.

Every entry costs the guest's kernel about 9000 instructions and every page of data about 2500, so
only the first process, busybox and a few links are unpacked at boot. The rest is in one member
that the kernel skips, because the folder it names does not exist; guest/init/tools.c takes a tool
from there when it is first run.
"""

from pathlib import Path

from . import cpio

_FOLDERS = ("bin", "dev", "etc", "mnt", "proc", "root", "sys", "usr")

# The shell, xargs, find and the like run busybox's applets without a link. These names are for
# whoever gives a whole path, as scripts and programs do.
_APPLET_LINKS = ("sh", "mount", "umount", "cat", "ls", "env", "test", "true", "false", "echo")

_INIT_LINKS = ("poweroff", "halt", "reboot")

# Other names of tools, which guest/init/tools.c resolves too.
_TOOL_LINKS = ("mkfs.ext2", "mkfs.ext4", "fsck.ext4")


def build(init: Path, busybox: Path, tools: list[Path]) -> bytes:
    """The ramdisk, from the programs' files; `tools` are those to unpack on first use."""
    boot = [cpio.directory(name) for name in _FOLDERS]
    boot.append(cpio.directory("tmp", 0o1777))
    boot += [cpio.symlink(name, "bin") for name in ("sbin",)]
    boot += [cpio.symlink(f"usr/{name}", "../bin") for name in ("bin", "sbin")]
    boot.append(cpio.character_device("dev/console", 5, 1))
    boot.append(cpio.file("init", init.read_bytes()))
    boot.append(cpio.file("bin/busybox", busybox.read_bytes()))
    boot += [cpio.symlink(f"bin/{name}", "busybox") for name in _APPLET_LINKS]
    links = [*_INIT_LINKS, *(tool.name for tool in tools), *_TOOL_LINKS]
    boot += [cpio.symlink(f"bin/{name}", "../init") for name in links]
    boot.append(cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644))
    boot.append(cpio.file("etc/group", b"root:x:0:\n", 0o644))
    packed = cpio.archive([cpio.file(tool.name, tool.read_bytes()) for tool in tools])
    boot.append(cpio.file(".tools/archive", packed, 0o644))
    return cpio.archive(boot)
