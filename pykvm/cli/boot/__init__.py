"""``pykvm boot``: its options, the sessions on its terminal, and its report at the end."""
