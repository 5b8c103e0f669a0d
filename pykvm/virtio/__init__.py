"""virtio 1.2: constants, virtqueues and the contract between device and transport."""
