"""The file or block device behind a disk: opened, measured, locked, synced."""
