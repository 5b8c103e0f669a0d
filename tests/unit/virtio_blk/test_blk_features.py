"""The feature bits, block sizes and configuration that a driver sees, by the options."""

import errno
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from struct import pack, unpack_from

import pytest
from blk_device import IN, IOERR, OK, OUT, SECTORS, Maker, block_device, disk_file, disks
from blk_host import loop_device
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import DiscardMode, DiskOptions, Image
from pykvm.devices.virtio_blk import constants as blk
from pykvm.devices.virtio_blk.config_space import ConfigSpace
from pykvm.devices.virtio_blk.features import Blocks, describe, offered
from pykvm.devices.virtio_blk.image.host_limits import HostBlocks
from pykvm.errors import UsageError

FILE = HostBlocks(512, 0, 0, 0, 0, 4096)
"""The block sizes of most files on a host."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return disk_file(tmp_path)


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with disks(path) as maker:
        yield maker


# -- features ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "bits"),
    [
        ({"seg_max": None}, blk.VIRTIO_BLK_F_SEG_MAX),
        ({"blk_size": False}, blk.VIRTIO_BLK_F_BLK_SIZE),
        ({"topology": False}, blk.VIRTIO_BLK_F_TOPOLOGY),
        ({"config_wce": False}, blk.VIRTIO_BLK_F_CONFIG_WCE),
        ({"flush": False}, blk.VIRTIO_BLK_F_FLUSH | blk.VIRTIO_BLK_F_CONFIG_WCE),
        ({"discard": DiscardMode.OFF}, blk.VIRTIO_BLK_F_DISCARD),
        ({"write_zeroes": False}, blk.VIRTIO_BLK_F_WRITE_ZEROES),
    ],
)
def test_each_feature_can_be_turned_off(make: Maker, option: dict[str, object], bits: int) -> None:
    """Only that goes away, and the disk works without it."""
    everything = offered(DiskOptions(), False)
    assert everything & bits == bits
    disk = make(**option)
    assert offered(DiskOptions(**option), False) == everything & ~bits  # type: ignore[arg-type]
    assert disk.do(OUT, 0, b"n" * 512)[0] == OK
    assert disk.do(IN, 0, size=512) == (OK, b"n" * 512)


@pytest.mark.parametrize(
    ("option", "bit"),
    [
        ({"size_max": 4096}, blk.VIRTIO_BLK_F_SIZE_MAX),
        ({"cyls": 16, "heads": 4, "secs": 4}, blk.VIRTIO_BLK_F_GEOMETRY),
        ({"lifetime": (0, 0, 0)}, blk.VIRTIO_BLK_F_LIFETIME),
        ({"num_queues": 2}, blk.VIRTIO_BLK_F_MQ),
    ],
)
def test_optional_features_can_be_turned_on(option: dict[str, object], bit: int) -> None:
    assert offered(DiskOptions(**option), False) == offered(DiskOptions(), False) | bit  # type: ignore[arg-type]


def test_a_read_only_disk_changes_nothing() -> None:
    writes = blk.VIRTIO_BLK_F_DISCARD | blk.VIRTIO_BLK_F_WRITE_ZEROES
    both = offered(DiskOptions(), False) ^ offered(DiskOptions(), True)
    assert both == writes | blk.VIRTIO_BLK_F_RO


def test_without_a_flush_every_write_is_durable(make: Maker, path: Path) -> None:
    disk = make(flush=False)
    assert not disk.device.writeback
    disk.device.image.sync_error = errno.EIO
    assert disk.do(OUT, 0, bytes(512))[0] == IOERR


# -- the configuration ------------------------------------------------------------


def test_fields_of_features_that_are_not_offered_are_zero(make: Maker) -> None:
    disk = make(
        start=False,
        seg_max=None,
        blk_size=False,
        topology=False,
        config_wce=False,
        discard=DiscardMode.OFF,
        write_zeroes=False,
    )
    assert disk.device.config == pack("<Q", SECTORS) + bytes(64)


def test_a_read_only_disk_has_no_fields_of_discards_and_zeroes(make: Maker) -> None:
    config = make(start=False, readonly=True).device.config
    assert config[36:] == bytes(36)


def test_the_configuration_explains_the_options(make: Maker) -> None:
    config = make(
        start=False,
        cyls=300,
        heads=16,
        secs=63,
        logical_block_size=1024,
        physical_block_size=4096,
        min_io_size=8192,
        opt_io_size=65536,
        discard_granularity=32768,
    ).device.config
    assert unpack_from("<HBB", config, 16) == (300, 16, 63)
    assert unpack_from("<I", config, 20) == (1024,)
    assert unpack_from("<BBHI", config, 24) == (2, 0, 8, 64)
    assert unpack_from("<3I", config, 36) == (1 << 22, 32, 64)
    assert unpack_from("<2IB", config, 48) == (1 << 22, 32, 1)
    assert config[57:] == bytes(15)


def test_zeroes_that_never_free_space(make: Maker) -> None:
    assert not make(start=False, discard=DiscardMode.IGNORE).device.config[56]


# -- blocks -----------------------------------------------------------------------


def test_blocks_of_a_file() -> None:
    assert Blocks.choose(DiskOptions(), FILE) == Blocks(512, 512, 0, 0, 0, 4096)
    large = DiskOptions(logical_block_size=4096)
    assert Blocks.choose(large, FILE) == Blocks(4096, 4096, 0, 0, 0, 4096)


def test_blocks_with_o_direct() -> None:
    assert Blocks.choose(DiskOptions(), FILE, 4096).physical == 4096
    assert Blocks.choose(DiskOptions(physical_block_size=512), FILE, 4096).physical == 512


def test_blocks_of_a_host_device() -> None:
    host = HostBlocks(512, 4096, 3584, 4096, 1 << 20, 1 << 16)
    assert Blocks.choose(DiskOptions(), host) == Blocks(*host)
    # Advice that is no multiple of the user's block size is useless.
    large = DiskOptions(logical_block_size=4096, physical_block_size=8192)
    assert Blocks.choose(large, host) == Blocks(4096, 8192, 0, 4096, 1 << 20, 1 << 16)


@pytest.mark.parametrize(
    ("physical", "minimum", "optimal", "taken"),
    [
        pytest.param(512, 512, 33553920, (512, 0), id="USB bridge, 65535 sectors"),
        pytest.param(4096, 4096, 33553920, (4096, 0), id="the same, larger blocks"),
        pytest.param(4096, 512, 6144, (0, 0), id="parts of blocks"),
        pytest.param(512, 65536, 196608, (65536, 196608), id="an array of three"),
        pytest.param(4096, 4096, 16773120, (4096, 16773120), id="4095 pages"),
        pytest.param(16384, 16384, 4096, (16384, 0), id="less than a block"),
    ],
)
def test_implausible_advice_of_the_host_is_ignored(
    physical: int, minimum: int, optimal: int, taken: tuple[int, int]
) -> None:
    blocks = Blocks.choose(DiskOptions(), HostBlocks(512, physical, 0, minimum, optimal, 512))
    assert (blocks.minimum, blocks.optimal) == taken
    asked = DiskOptions(min_io_size=1024, opt_io_size=33553920)
    blocks = Blocks.choose(asked, HostBlocks(512, physical, 0, minimum, optimal, 512))
    assert (blocks.minimum, blocks.optimal) == (1024, 33553920)  # a user's own choice counts


def test_a_minimum_larger_than_its_field_is_cut() -> None:
    blocks = Blocks.choose(DiskOptions(min_io_size=1 << 30), FILE)
    assert blocks.minimum == 0xFFFF * 512


@pytest.mark.parametrize("logical", [512, 4096])
@given(where=st.integers(0, 4095))
def test_an_alignment_larger_than_its_field_is_reduced(logical: int, where: int) -> None:
    """Such as that of a partition in blocks of 2 MiB: smaller blocks are told of."""
    physical = 2 << 20
    place = where * 512
    blocks = Blocks.choose(DiskOptions(), HostBlocks(logical, physical, place, 0, 0, 4096))
    config = ConfigSpace(blk.VIRTIO_BLK_F_TOPOLOGY, nullcontext())
    describe(config, DiskOptions(), blocks, False)
    told, aligned = 1 << config.bytes[24], config.bytes[25]
    if place % logical:
        assert aligned == 0
    else:
        assert aligned == place // logical % told
        assert told * logical == physical or (place > 255 * logical and told == 256)


def test_a_block_device_is_asked(path: Path) -> None:
    with loop_device(path, 4096) as device:
        made = block_device(Image(device))
        assert unpack_from("<I", made.config, 20) == (4096,)
        assert unpack_from("<I", made.config, 44)[0] * 512 % 4096 == 0
        made.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logical_block_size": 8192}, "logical-block-size cannot be 8192"),
        ({"logical_block_size": 1000}, "use a power of 2"),
        ({"physical_block_size": 256}, "physical-block-size cannot be 256"),
        ({"physical_block_size": 4 << 20}, "physical-block-size cannot be"),
        ({"min_io_size": -1}, "min-io-size cannot be -1"),
        ({"cyls": 16}, "a geometry needs cyls, heads and secs"),
        ({"cyls": 16, "heads": 256, "secs": 1}, "heads cannot be 256"),
        ({"heads": 2, "secs": 1}, "give all three or none"),
        ({"lifetime": (4, 0, 0)}, "lifetime cannot be 4"),
        ({"lifetime": (0, 12, 0)}, "lifetime cannot be 12"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        DiskOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logical_block_size": 4096, "physical_block_size": 512}, "use 4096 or more"),
        ({"logical_block_size": 4096, "min_io_size": 512}, "min-io-size=512 is not a multiple"),
        ({"opt_io_size": 1000}, "opt-io-size=1000 is not a multiple"),
        ({"discard_granularity": 100}, "discard-granularity=100 is not a multiple"),
    ],
)
def test_contradicting_block_sizes_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Blocks.choose(DiskOptions(**options), FILE)  # type: ignore[arg-type]


def test_an_image_without_whole_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(4096 + 512))
    image = Image(path)
    with pytest.raises(UsageError, match="its size, 4608 bytes, is not a multiple"):
        block_device(image, logical_block_size=4096)
    block_device(image).close()


def test_a_disk_keeps_whole_blocks_when_it_is_resized(path: Path) -> None:
    made = block_device(Image(path), logical_block_size=4096)
    with pytest.raises(UsageError, match="give a multiple of 4096"):
        made.resize(SECTORS * 512 + 512)
    made.resize(SECTORS * 512 + 4096)
    made.close()


# -- requests of whole blocks ---------------------------------------------------------


def test_requests_are_of_whole_blocks(make: Maker, path: Path) -> None:
    disk = make(logical_block_size=4096)
    before = path.read_bytes()
    assert disk.do(IN, 8, size=8192) == (OK, before[4096:12288])
    for sector, size in ((8, 512), (1, 4096), (8, 4096 + 512), (4, 8192)):
        assert disk.do(IN, sector, size=size)[0] == IOERR
        assert disk.do(OUT, sector, b"n" * size)[0] == IOERR
    assert path.read_bytes() == before
    assert disk.stats()["invalid_rd_operations"] == 4
    assert disk.do(OUT, 16, b"n" * 4096)[0] == OK


def test_a_driver_that_does_not_know_of_blocks_may_have_sectors(make: Maker) -> None:
    disk = make(logical_block_size=4096, features=0)
    assert disk.do(IN, 1, size=512)[0] == OK
