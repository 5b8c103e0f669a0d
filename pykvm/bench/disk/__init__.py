"""Measures disks: the bare-metal guest's loads under pykvm, and the same loads under other tools.

It measures every tool from outside and in the same way: each tool is a child process, and the
figures come from the guest's own clock and from /proc.
"""
