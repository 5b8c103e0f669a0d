"""What the hot path needs in both of its forms, interpreted and compiled (speed/README.md)."""
