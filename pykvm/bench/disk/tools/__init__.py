"""The tools that carry out workloads: pykvm and QEMU with the bare-metal guest, and fio."""
