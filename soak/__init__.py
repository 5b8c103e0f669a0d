"""Random drivers, owners and faults against the whole disk: ``make soak``; see README.md."""
