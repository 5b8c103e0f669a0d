"""``pykvm bench disk``: its options, and the choice of the disks."""
