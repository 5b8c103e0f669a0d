"""A Linux guest that is saved, restored and put back while it uses its disk loses nothing.

``python -m soak.linux`` has longer trips.
"""

from pathlib import Path

import pytest
from patience import linux_patience

from pykvm import EngineKind
from soak.linux.trip import Traveller, Trip

pytestmark = [pytest.mark.kvm, pytest.mark.linux]


@pytest.mark.parametrize(
    ("kind", "packed", "engine"),
    [("overlay", False, EngineKind.THREADS), ("image", True, EngineKind.SYNC)],
    ids=["overlay-split", "image-packed"],
)
def test_a_guest_that_uses_its_disk_moves_on(
    tmp_path: Path, kind: str, packed: bool, engine: EngineKind
) -> None:
    trip = Trip(
        seed=3,
        packed=packed,
        in_order=packed,
        engine=engine,
        kind=kind,
        segments=4,
        limited=False,
        late=False,
    )
    traveller = Traveller(trip, tmp_path, linux_patience())
    traveller.run(4)
    assert traveller.seen["rounds"] == 4
    assert traveller.seen["stops"] > 0
    assert traveller.seen["calls"] > 0
