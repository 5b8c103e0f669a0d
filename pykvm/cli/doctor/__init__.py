"""``pykvm doctor``: it examines the host and reports."""
