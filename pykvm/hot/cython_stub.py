"""Stands in for the module ``cython``, which only the compiled form needs."""

from typing import Any

compiled = False
declare: Any = None
address: Any = None
nogil: Any = None
cast: Any = None
size_t: Any = None
p_ushort: Any = None
