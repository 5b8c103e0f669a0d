"""What keeps a start short: stand-ins for slow parts of the standard library, and lazy names.

Frozen values with named fields are made

- by ``@record`` (:mod:`pykvm.lean.records`) wherever ``pykvm boot`` imports them;
- by NamedTuple where they are unpacked;
- by ``@dataclass`` elsewhere: in ``pykvm bench``, the monitor, the tests.
"""
