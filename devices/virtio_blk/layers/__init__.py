"""Engines that wrap engines: injected faults, writes kept apart from the image, padding."""
