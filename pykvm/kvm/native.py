"""C structures (``ffi``) and C functions of the running process (``libc``).

The types are Any, because mypy does not know the fields of C structures.
``structs.py`` has types for the structures that other modules use.
"""

from pykvm.kvm import _abi
from pykvm.lean.typing_names import Any

ffi: Any = _abi.ffi
libc: Any = ffi.dlopen(None)
