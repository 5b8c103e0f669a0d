"""``pykvm boot``: its options, the sessions on its terminal, and what it tells at the end."""
