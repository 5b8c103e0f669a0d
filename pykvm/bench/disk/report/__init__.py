"""The reports on measurements: comparisons, tables, drawings and JSON."""
