"""The statistics and the trace of a disk."""
