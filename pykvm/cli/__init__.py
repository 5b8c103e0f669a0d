"""The command line: ``python -m pykvm``."""
