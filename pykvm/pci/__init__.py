"""PCI: configuration mechanism 1, a host bridge, MSI-X, and the virtio-pci transport."""
