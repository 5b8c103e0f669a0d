"""pykvm: a small hypervisor in Python, with a virtio-blk disk to read, watch and break."""

__version__ = "0.1.0"
