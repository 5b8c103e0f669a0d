"""Guests for programs and tests: boot one, run commands in it, look at it, throw it away."""
