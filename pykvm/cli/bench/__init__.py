"""``pykvm bench``: its options, and the choice of the disks."""
