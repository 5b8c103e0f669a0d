"""The recorder at the engine's seam."""

import errno
from array import array

from pykvm.devices.virtio_blk import Image, SyncEngine
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.core.request import Request
from pykvm.memory.ram import Ram
from pykvm.testing.recording_engine import EngineEvent, EngineLog


def operation(kind: int, offset: int = 0, length: int = 0, members: int = 1) -> Operation:
    made = Operation([Request(head) for head in range(members)])
    made.kind, made.offset, made.length = kind, offset, length
    made.offsets, made.lengths = array("q", [0]), array("q", [length])
    made.last = 1 if length else 0
    return made


def test_submissions_and_completions_are_recorded(image: Image) -> None:
    log = EngineLog()
    engine = log.wrap(SyncEngine)(image, Ram.flat(8192))
    assert engine.notifier == -1
    write = operation(VIRTIO_BLK_T_OUT, 1024, 1024, members=2)
    write.durable = True
    flush = operation(VIRTIO_BLK_T_FLUSH)
    engine.submit([write, flush])
    assert list(engine.completions()) == [write, flush]
    assert list(engine.completions()) == []
    engine.close()
    assert log.events == [
        EngineEvent("submitted", 0, 0, "write", 2, 2, 2, 1, True),
        EngineEvent("submitted", 1, 0, "flush", 0, 0, 1, 0, False),
        EngineEvent("completed", 0, 0, "write", 2, 2, 2, 1, True, 0, 1024),
        EngineEvent("completed", 1, 0, "flush", 0, 0, 1, 0, False),
    ]
    assert log.operations() == [("write", 2, 2, 2), ("flush", 0, 0, 1)]


def test_engines_are_told_apart_and_a_stop_reaches_them(image: Image) -> None:
    log = EngineLog()
    make = log.wrap(SyncEngine)
    first, second = make(image, Ram.flat(8192)), make(image, Ram.flat(8192))
    second.stop()
    for engine in (first, second):
        engine.submit([operation(VIRTIO_BLK_T_IN, 700, 512)])
        engine.completions()
        engine.close()
    assert [(e.event, e.number, e.engine, e.error) for e in log.events] == [
        ("submitted", 0, 0, 0),
        ("completed", 0, 0, 0),
        ("submitted", 1, 1, 0),
        ("completed", 1, 1, errno.ECANCELED),
    ]
    assert log.operations() == [("read", 1, 2, 1)] * 2
