"""Options of QEMU and other programs that run VMs, with pykvm's replacement for each.

Imported only when an option is unknown.
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
    "the initial RAM disk has the root filesystem; for a root on a disk, use --disk PATH and "
    "--append root=/dev/vda": "root rwroot r",
    "pykvm has no network device": "net netdev nic tap network",
    "pykvm has no display: the console is on this terminal, and --console-log FILE copies it": (
        "nographic display vga vnc curses sdl gtk spice"
    ),
    "the console is on standard input and output, and --console-log FILE copies it": (
        "serial console chardev"
    ),
    "write --debug before the command: pykvm --debug boot": "debug",
    "pykvm always uses KVM": "enable-kvm accel kvm",
    "pykvm has one kind of machine, with the host's CPU": "machine M cpu",
    "a reset always ends the run": "no-reboot action",
    "pykvm boots kernels without firmware: use --kernel FILE": "boot bios pflash firmware",
    "pykvm has no port for a debugger": "s gdb",
    "the guest runs at once; Ctrl-a s or the monitor stops it": "S",
    "pykvm shares no folders; pass files on a disk or on standard input": (
        "virtfs fsdev fs shared-dir rwdir share 9p"
    ),
    "append '&' in a shell to run pykvm in the background": "daemonize pidfile",
}
_HINTS = MappingProxyType({name: hint for hint, names in _TEXTS.items() for name in names.split()})


def hint_for(word: str) -> str:
    """The replacement for the option in ``word``, or "". A value may follow the option after =."""
    return _HINTS.get(word.partition("=")[0].lstrip("-"), "") if word.startswith("-") else ""
