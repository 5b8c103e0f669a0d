"""``pykvm bench compare``: one load under several configurations of a disk."""
