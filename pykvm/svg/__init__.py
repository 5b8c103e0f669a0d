"""The common parts of the drawings of ``bench`` and ``trace``."""
