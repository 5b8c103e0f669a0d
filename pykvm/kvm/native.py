"""The C side: structures (``ffi``) and functions of the running process (``libc``).

Typed as Any because the fields of C structures are unknown to mypy;
``structs.py`` has types for the ones that others use.
"""

from pykvm.kvm import _abi
from pykvm.lean.typing_names import Any

ffi: Any = _abi.ffi
libc: Any = ffi.dlopen(None)
