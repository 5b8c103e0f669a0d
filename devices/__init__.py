"""Device models. Each folder is one device, and imports as ``pykvm.devices.<name>``."""
