"""Axes of drawings: the place and the label of each value. Pure."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: ``place`` maps a value to 0 … 1, and ``ticks`` are the values to label."""

    place: Callable[[float], float]
    ticks: Sequence[float]


def linear_axis(values: Iterable[float]) -> Axis:
    """An axis from 0 to a round number above all of ``values``."""
    top = max(values, default=0.0) or 1.0
    unit = 10 ** math.floor(math.log10(top / 4))
    step = next(s * unit for s in (*_STEPS, 10) if s * unit * 5 >= top)
    count = max(1, math.ceil(top / step - 1e-9))
    end = step * count
    return Axis(lambda value: min(1.0, value / end), [step * i for i in range(count + 1)])


def log_axis(values: Iterable[float]) -> Axis:
    """A logarithmic axis between round numbers around all of ``values``, which are positive."""
    known = [value for value in values if value > 0] or [1.0]
    rounds = [s * 10.0**e for e in range(-3, 10) for s in _STEPS]
    first = max((r for r in rounds if r <= min(known)), default=rounds[0])
    last = min((r for r in rounds if r >= max(known) and r > first), default=rounds[-1])
    span = math.log(last / first)
    ticks = [r for r in rounds if first <= r <= last]
    # Labels of more than six ticks would touch.
    ticks = ticks[:: max(1, math.ceil(len(ticks) / 6))]
    return Axis(lambda value: math.log(max(value, first) / first) / span, ticks)


def short(value: float) -> str:
    """The label of ``value``: 1.5M for 1500000, 20k for 20000."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
