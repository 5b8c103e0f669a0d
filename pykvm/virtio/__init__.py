"""virtio 1.2: constants, split virtqueues and the contract between device and transport."""
