"""Helpers for tests of images."""

from pathlib import Path

import pytest

from pykvm.devices.virtio_blk import CacheMode, Image
from pykvm.errors import UsageError


def refusal(
    path: Path | str, readonly: bool = False, cache: CacheMode = CacheMode.WRITEBACK
) -> str:
    """The error message for a user of this image."""
    with pytest.raises(UsageError) as caught:
        Image(path, readonly, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)
