"""What the drawings of ``bench`` and ``trace`` have in common."""
