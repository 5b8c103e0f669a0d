"""The device-specific configuration space of a virtio device, as its driver sees it. Pure."""

from pykvm.virtio.device import VirtioDevice


class DeviceConfig:
    """The driver's accesses to the configuration space of ``device`` (virtio 1.2 §2.5)."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self._contents = device.config
        self._generation = 0

    @property
    def generation(self) -> int:
        """The configuration generation. It changes whenever a driver that reads the space in
        pieces may have read pieces of two states (§4.1.4.3.1).
        """
        self._current()
        return self._generation

    def load(self, generation: int) -> None:
        """Go on with ``generation``, for the content that the driver knows."""
        self._contents = self._device.config
        self._generation = generation

    def read(self, offset: int, size: int) -> int:
        """The little-endian integer of ``size`` bytes at ``offset``; 0 past the end."""
        contents = self._current()
        end = offset + size
        return int.from_bytes(contents[offset:end], "little") if end <= len(contents) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Hand the driver's write to the device; past the end, ignore it."""
        if offset + size <= len(self._contents):
            self._device.write_config(offset, size, value)

    def _current(self) -> bytes:
        # Compared when the driver looks: a device that counted its own changes would count
        # before or after a change, and a driver could read in between.
        contents = self._device.config
        if contents is not self._contents:
            self._contents = contents
            self._generation = (self._generation + 1) & 0xFF
        return contents
