"""``pykvm bench``: its options, and the disks that it measures."""
