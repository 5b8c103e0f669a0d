"""Power cuts: the contents that a disk can have after one, and checks of them.

A disk keeps a write in a cache until it is stable, and a power cut loses any part of that cache
(virtio 1.2 §5.2.6). :meth:`pykvm.Disk.record` records a disk's writes. :class:`Recorded` is such a
recording: it tries the legal survivors, reduces a failing one, and writes it as an image.

:mod:`~pykvm.crash.model` says which writes are stable at a cut. :mod:`~pykvm.crash.states` chooses
cuts and lost writes. :mod:`~pykvm.crash.minimise` reduces, :mod:`~pykvm.crash.dm_log` exports, and
:mod:`~pykvm.crash.description` puts a state into words. These are pure.
"""

from pykvm.lean.lazy import lazy_names

TYPE_CHECKING = False  # a type checker takes it for True; importing typing takes too long

if TYPE_CHECKING:
    from pykvm.crash.checker import Failure
    from pykvm.crash.checks import Check, Survivor, ext4
    from pykvm.crash.description import describe
    from pykvm.crash.in_guest import InGuest
    from pykvm.crash.model import Model, Rules, Tear
    from pykvm.crash.recorded import Recorded, Report
    from pykvm.crash.states import Coverage, Cuts, State

__all__ = [
    "Check",
    "Coverage",
    "Cuts",
    "Failure",
    "InGuest",
    "Model",
    "Recorded",
    "Report",
    "Rules",
    "State",
    "Survivor",
    "Tear",
    "describe",
    "ext4",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "pykvm.crash.checker": "Failure",
            "pykvm.crash.checks": "Check Survivor ext4",
            "pykvm.crash.description": "describe",
            "pykvm.crash.in_guest": "InGuest",
            "pykvm.crash.model": "Model Rules Tear",
            "pykvm.crash.recorded": "Recorded Report",
            "pykvm.crash.states": "Coverage Cuts State",
        },
    )
