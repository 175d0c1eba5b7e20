"""Row lengths as bars of a drawing, measured against a context length. Knows nothing of how tokens are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

BARS = 40
WIDTH, HEIGHT = 640, 96
"""The drawing's own units."""


@dataclass(frozen=True)
class Bar:
    """A bar: where it stands in the drawing, the lengths and the number of rows it stands for, whether it is past the limit."""

    x: float
    y: float
    width: float
    height: float
    first: int
    last: int
    rows: int
    over: bool


@dataclass(frozen=True)
class Histogram:
    """Bars, where the limit stands (None: outside the drawing), how many rows are longer, the longest, the middle one."""

    bars: list[Bar]
    limit: float | None
    over: int
    longest: int
    median: int


def histogram(lengths: Sequence[int], limit: int) -> Histogram | None:
    """The rows by their tokens; None when there are none."""
    if not lengths:
        return None
    longest = max(lengths)
    end = max(longest, limit) if 2 * longest > limit else longest  # a far limit would press all bars into a corner
    step = _step(end)
    counts = Counter((length - 1) // step for length in lengths)
    places = (end - 1) // step + 1
    wide = WIDTH / places
    tallest = max(counts.values())
    bars = [_bar(place, count / tallest, count, step, wide, limit) for place, count in sorted(counts.items())]
    mark = round(limit / (places * step) * WIDTH, 2) if limit <= places * step else None
    return Histogram(bars, mark, sum(length > limit for length in lengths), longest, median_low(lengths))


def _bar(place: int, share: float, rows: int, step: int, wide: float, limit: int) -> Bar:
    height = max(2.0, HEIGHT * share)
    first, last = place * step + 1, (place + 1) * step
    x, width = round(place * wide + 1, 2), round(max(wide - 2, 1), 2)
    return Bar(x, round(HEIGHT - height, 2), width, round(height, 2), first, last, rows, first > limit)


def _step(end: int) -> int:
    """The width of a bar in tokens: a round number that gives at most BARS bars."""
    step = 8
    while end > step * BARS:
        step *= 2
    return step
