"""The sectors in the map are those of an ordinary set."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.layers.sector_map import CHUNK, SectorMap

SECTORS = 3 * CHUNK + 5
# Near the borders of chunks is where mistakes would be.
places = st.sampled_from([0, CHUNK, 2 * CHUNK, SECTORS]).flatmap(
    lambda border: st.integers(max(0, border - 9), min(SECTORS, border + 9))
)
extents = st.tuples(places, places).map(sorted)


def runs(sectors: SectorMap, first: int, end: int) -> list[tuple[bool, int]]:
    found = []
    while first < end:
        found.append(sectors.run(first, end))
        first += found[-1][1]
    assert first == end
    return found


@given(places, st.lists(extents, max_size=6), extents)
def test_runs_are_those_of_a_set(end: int, added: list[list[int]], asked: list[int]) -> None:
    sectors = SectorMap(end)
    model = set(range(end, SECTORS))
    for first, last in added:
        sectors.add(first, last)
        model.update(range(first, last))
    found = runs(sectors, *asked)
    states = [inside for inside, length in found for _ in range(length)]
    assert states == [sector in model for sector in range(*asked)]
    insides = [inside for inside, _ in found]
    assert all(one != other for one, other in pairwise(insides)), "as long"


def test_a_large_disk_of_which_nothing_was_written() -> None:
    sectors = SectorMap(1 << 40)
    assert sectors.run(1 << 39, (1 << 39) + 1000) == (False, 1000)
    sectors.add(1 << 39, (1 << 39) + 1)
    assert runs(sectors, (1 << 39) - 1, (1 << 39) + 2) == [(False, 1), (True, 1), (False, 1)]
