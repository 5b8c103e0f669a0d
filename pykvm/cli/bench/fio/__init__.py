"""``pykvm bench fio``: fio in a guest."""
