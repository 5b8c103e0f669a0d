"""From requests to operations, and which may start when: neither I/O nor threads."""
