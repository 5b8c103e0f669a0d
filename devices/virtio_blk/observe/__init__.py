"""Counts and traces of what a disk does."""
