"""Stand-ins for parts of the standard library that take long to import.

Frozen values with named fields are made

- by ``@record`` (:mod:`pykvm.lean.records`) wherever ``pykvm boot`` imports them;
- by NamedTuple where they are unpacked;
- by ``@dataclass`` elsewhere: in ``pykvm bench``, the monitor, the tests.
"""
