"""``pykvm bench``: a room for each of its commands, and their parts in common."""
