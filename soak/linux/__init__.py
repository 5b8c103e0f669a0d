"""Linux guests that are saved, restored and put back while they use a disk."""
