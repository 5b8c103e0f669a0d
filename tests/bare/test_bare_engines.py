"""Each engine behind the bare guest's disk: the same answers, bytes and order."""

import random
import zlib
from pathlib import Path

import pytest

from pykvm.bare import BlockDriver, BlockRequest, Script
from pykvm.bare.run import run_script
from pykvm.devices.virtio_blk import CacheMode, EngineKind, ErrorPolicy
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.errors import UsageError
from pykvm.host import io_uring
from pykvm.machine import DiskConfig

pytestmark = pytest.mark.kvm

BLOCK = 4096
OK, IOERR = 0, 1


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE, CacheMode.DIRECTSYNC])
@pytest.mark.parametrize("engine", list(EngineKind))
def test_a_batch_of_everything(
    tmp_path: Path, content: bytes, engine: EngineKind, cache: CacheMode
):
    if engine is EngineKind.IO_URING and io_uring.problem():
        pytest.skip(io_uring.problem())
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    plan = FaultPlan([Fault(operation="read", sectors=8 * 8, errno="EIO")])
    disk = DiskConfig(path, cache=cache, engine=engine, rerror=ErrorPolicy.REPORT, faults=plan)
    data = [random.Random(2 + i).randbytes(BLOCK) for i in range(16)]
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    writes = [BlockRequest.write(8 * (128 + 2 * i), data[i]) for i in range(16)]
    batch = driver.submit(
        [
            *writes,
            BlockRequest.flush(),
            *(BlockRequest.read(8 * i, BLOCK, hashed=True) for i in range(16)),
            BlockRequest.read(8 * 64 + 1, 512),
        ]
    )
    again = driver.submit([BlockRequest.read(8 * 128, BLOCK), BlockRequest.read(3, 1024)])
    try:
        run = run_script(script, [disk])
    except UsageError as error:
        if "O_DIRECT" in error.message:
            pytest.skip(error.message)
        raise
    outcomes = batch.outcomes(run.results)
    statuses = [outcome.status for outcome in outcomes]
    assert statuses == [OK] * 17 + [OK] * 8 + [IOERR] + [OK] * 7 + [OK]
    for i, outcome in enumerate(outcomes[17:33]):
        if i != 8:
            assert outcome.crc == zlib.crc32(content[BLOCK * i :][:BLOCK])
    at = 512 * (8 * 64 + 1)
    assert outcomes[33].data == content[at : at + 512]
    first, second = again.outcomes(run.results)
    assert (first.data, second.data) == (data[0], content[1536:2560])
    expected = bytearray(content)
    for i in range(16):
        where = BLOCK * (128 + 2 * i)
        expected[where : where + BLOCK] = data[i]
    assert path.read_bytes() == expected
