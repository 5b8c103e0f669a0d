"""Saved machines on disk: a folder with a manifest, the state of each part, and RAM."""
