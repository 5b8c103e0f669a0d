"""Measures disks: the bare-metal guest's loads on pykvm, and what others make of the same.

Everything is measured from outside, and alike: each tool is a child process,
and figures come from the guest's own clock and from /proc.
"""
