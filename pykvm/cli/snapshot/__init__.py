"""``pykvm snapshot``: saved guests in folders."""
