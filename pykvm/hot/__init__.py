"""Helpers of the hot path in both of its forms, interpreted and compiled (speed/README.md)."""
