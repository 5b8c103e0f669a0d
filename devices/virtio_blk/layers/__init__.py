"""Engines that wrap other engines: faults on purpose, writes kept apart, padding."""
