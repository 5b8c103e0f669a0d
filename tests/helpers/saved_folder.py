"""The folder of a small snapshot."""

from pathlib import Path

from pykvm.snapshot import writing
from pykvm.snapshot.content import write_memory

PAGE = 4096
STATE = {"clock": {"on": True, "cells": b"\0\xff", "timers": [{"left": -1}], "name": "rtc"}}


def write(place: Path, ram: bytes = bytes(PAGE), state: object = STATE) -> None:
    def write_ram(file: int) -> None:
        write_memory(file, memoryview(ram), [(0, len(ram))])

    writing.write(place, {"cpus": 2}, state, write_ram)  # type: ignore[arg-type]
