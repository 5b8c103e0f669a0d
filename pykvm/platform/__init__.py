"""The PC around the processor: serial ports, clock, keyboard controller, small I/O ports.

Also what runs over them: the agent's protocol, and the rules by which a run
is said to have ended.
"""
