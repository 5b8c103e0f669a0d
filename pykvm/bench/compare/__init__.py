"""The same load under several configurations of a disk."""
