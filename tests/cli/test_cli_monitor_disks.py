"""The monitor's commands that change a disk while its guest runs."""

import pytest
from monitor_clients import run_client, served
from qemu.qmp import ExecuteError

from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.devices.virtio_blk import DetectZeroes, RateLimits
from pykvm.machine import DiskConfig, MachineConfig

pytestmark = pytest.mark.kvm

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    return image


@pytest.fixture
def talk_about(tmp_path, bare_kernel, image):
    """Runs a conversation about a machine with one disk."""

    def talk_about(talk, **options):
        disk = DiskConfig(image, **options)
        config = MachineConfig(
            kernel=bare_kernel, append="spin", memory=MEMORY_NEEDED, disks=[disk]
        )
        path = tmp_path / "qmp"
        with served(path, config) as machine:
            machine.start()
            return run_client(path, talk)

    return talk_about


async def refused(client, command, **arguments):
    with pytest.raises(ExecuteError) as caught:
        await client.execute(command, arguments)
    assert caught.value.error_class == "GenericError"
    return str(caught.value)


def test_block_resize(talk_about, image):
    async def talk(client):
        for key in ("device", "node-name", "id"):
            size = SIZE + 512 * len(key)
            assert await client.execute("block_resize", {key: "virtio0", "size": size}) == {}
            (block,) = await client.execute("query-block")
            assert block["inserted"]["image"]["virtual-size"] == size == image.stat().st_size
        # No driver has set the disk up.
        await client.execute("block_resize", {"device": "virtio0", "size": 512})

    talk_about(talk)
    assert image.stat().st_size == 512


def test_query_block_has_the_detection_of_zeroes(talk_about):
    async def talk(client):
        (block,) = await client.execute("query-block")
        return block["inserted"]["detect_zeroes"]

    assert talk_about(talk, detect_zeroes=DetectZeroes.UNMAP) == "unmap"


def test_wrong_arguments_are_errors(talk_about, image):
    async def talk(client):
        return [
            await refused(client, "block_resize"),
            await refused(client, "block_resize", size=512),
            await refused(client, "block_resize", size=512, device="virtio1"),
            await refused(client, "block_resize", size=512, device="virtio0", id="virtio0"),
            await refused(client, "block_resize", size="1M", device="virtio0"),
            await refused(client, "block_resize", size=True, device="virtio0"),
            await refused(client, "block_resize", size=512, device=0),
            await refused(client, "block_resize", size=512, device="virtio0", shrink=1),
            await refused(client, "block_resize", size=513, device="virtio0"),
        ]

    which = "one of 'device', 'id' and 'node-name' must name the disk"
    assert talk_about(talk) == [
        "'block_resize' needs the argument 'size'",
        which,
        "there is no disk 'virtio1'",
        which,
        *2 * ["the argument 'size' of 'block_resize' must be a whole number"],
        "the argument 'device' of 'block_resize' must be a string",
        "'block_resize' has no argument 'shrink'",
        f"the disk image {image} cannot have 513 bytes; "
        "give a multiple of 512 from 512 to 9223372036854771712",
    ]
    assert image.stat().st_size == SIZE


def test_block_set_io_throttle(talk_about):
    """All six, as QEMU's clients send them. A missing one is 0."""
    six = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)

    async def talk(client):
        shown = []
        for limits in (
            {**six, "iops": 100, "iops_max": 200, "bps_wr": 1 << 20, "iops_size": 4096},
            {"iops_rd": 5},
        ):
            arguments = {"device": "virtio0", **limits}
            assert await client.execute("block_set_io_throttle", arguments) == {}
            (block,) = await client.execute("query-block")
            inserted = block["inserted"]
            shown.append({name: n for name, n in inserted.items() if name[:3] in ("iop", "bps")})
        why = [
            await refused(client, "block_set_io_throttle", device="virtio0", iops_max=1),
            await refused(client, "block_set_io_throttle", device="virtio0", iops=-1),
            await refused(client, "block_set_io_throttle", iops=1),
            await refused(client, "block_set_io_throttle", device="virtio0", group="g"),
        ]
        return shown, why

    shown, why = talk_about(talk, limits=RateLimits(bps=1))
    assert shown == [
        {**six, "iops": 100, "iops_max": 200, "bps_wr": 1 << 20, "iops_size": 4096},
        {**six, "iops_rd": 5},
    ]
    assert why == [
        "iops-max has no effect without iops; give iops too",
        "iops cannot be -1; use 0 to 1000000000000000",
        "one of 'device', 'id' and 'node-name' must name the disk",
        "'block_set_io_throttle' has no argument 'group'",
    ]
