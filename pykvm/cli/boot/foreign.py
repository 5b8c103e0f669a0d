"""Options of QEMU and of other programs that run VMs, and what pykvm has instead.

Imported when an option is not known.
"""

from types import MappingProxyType

_TEXTS = {
    "use --append STR": "append cmdline params p",
    "use --cpus N": "smp c",
    "use -m SIZE": "mem",
    "use --kernel FILE": "kernel k",
    "use --initrd FILE": "initrd i",
    "use --disk PATH[,KEY=VALUE...]": "drive blockdev device hda hdb hdc hdd sda rwdisk image d",
    "use --disk PATH,readonly=on": "cdrom",
    "use --disk PATH,snapshot=on": "snapshot",
    "use --exec CMD": "script-sh script execute run",
    "use --monitor PATH, which serves QMP": "monitor mon qmp qmp-pretty api-sock api-socket",
    "use --trace FILE": "trace",
    "the root is the initial RAM disk's; give a disk with --disk PATH and, to a kernel that is to "
    "mount it, --append root=/dev/vda": "root rwroot r",
    "there is no network": "net netdev nic tap network",
    "the console is on this terminal, and --console-log FILE keeps it; there is no display": (
        "nographic display vga vnc curses sdl gtk spice"
    ),
    "the console is on standard input and output; --console-log FILE keeps it": (
        "serial console chardev"
    ),
    "write it before the command: pykvm --debug boot": "debug",
    "KVM is always used": "enable-kvm accel kvm",
    "there is one kind of machine, with the host's CPU": "machine M cpu",
    "a reset always ends the run": "no-reboot action",
    "a kernel is booted without firmware: use --kernel FILE": "boot bios pflash firmware",
    "there is no debugger's port": "s gdb",
    "the guest runs at once; Ctrl-a s and the monitor stop it": "S",
    "there are no shared folders; a disk or standard input takes files to the guest": (
        "virtfs fsdev fs shared-dir rwdir share 9p"
    ),
    "a shell's '&' puts it into the background": "daemonize pidfile",
}
_HINTS = MappingProxyType({name: hint for hint, names in _TEXTS.items() for name in names.split()})


def hint_for(word: str) -> str:
    """What to use instead of the option in ``word``, which may have a value after ``=``, or ""."""
    return _HINTS.get(word.partition("=")[0].lstrip("-"), "") if word.startswith("-") else ""
