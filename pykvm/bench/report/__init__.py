"""What becomes of measurements: tables, comparisons, drawings, JSON."""
