"""Keeps a start short: stand-ins for slow parts of the standard library, and lazy names.

The rule for a class of values with named fields:

- ``@record`` (:mod:`pykvm.lean.records`) if ``pykvm boot`` imports the module: a dataclass
  would cost each start 0.4 ms, and the import of ``dataclasses`` some more;
- NamedTuple if its values are unpacked;
- ``@dataclass`` otherwise, such as in ``pykvm bench``, the monitor and the tests.

The rule for names of ``typing``: a module that a boot without disks imports takes them from
:mod:`pykvm.lean.typing_names`, because ``typing`` costs a start 2 ms, and 3 ms where
nothing else imports ``re``. Other modules import
``typing``.

The figures are those of docs/decisions/0012-records.md and 0013-lean-start.md. A test checks
the imports of a boot (tests/cli/test_cli_lean.py).
"""
