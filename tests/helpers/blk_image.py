"""What tests of images share."""

from pathlib import Path

import pytest

from pykvm.devices.virtio_blk import CacheMode, Image
from pykvm.errors import UsageError


def refusal(
    path: Path | str, readonly: bool = False, cache: CacheMode = CacheMode.WRITEBACK
) -> str:
    """What the user is told who wants this image."""
    with pytest.raises(UsageError) as caught:
        Image(path, readonly, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)
