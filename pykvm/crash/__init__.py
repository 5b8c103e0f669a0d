"""Power cuts: from the log of a disk's writes to the contents that a cut can leave.

The disk keeps a write in a cache until it is stable, and a power cut loses any part of that cache
(virtio 1.2 §5.2.6). :mod:`model` says which writes are stable at a cut, and which may be lost.
:mod:`states` chooses cuts and lost writes, and gives each choice an id. :mod:`minimise` finds the
smallest choice that still fails a check. :mod:`dm_log` writes the log for other tools. All of them
are pure.
"""
