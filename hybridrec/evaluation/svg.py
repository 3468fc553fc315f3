"""Charts as inline SVG: text and colour come from the page's style, so light and dark both work.

Each is a drawing of 960 units in width with a title for those who cannot see it; whatever a chart
shows is also written in a table of the page. Series are told apart by dash and label, not by colour
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 960.0
SERIES = 8
"""Classes s0 to s7 of the style; more series begin anew with another dash."""

_ROW = 30.0
_TEXT = 6.6  # the usual width of a character of 12 units in height


@dataclass(frozen=True)
class Bar:
    """A row of :func:`intervals`.

    Attributes:
        label: on the left.
        start: where the bar begins; None draws a dot instead of a bar.
        value: where it ends.
        low: the lower end of its interval.
        high: the upper end.
        note: on the right.
        tone: the class that colours it: "gain", "loss", "even" or "plain".
    """

    label: str
    start: float | None
    value: float
    low: float
    high: float
    note: str
    tone: str = "plain"


@dataclass(frozen=True)
class Point:
    """A point of :func:`scatter`, with the interval of its height."""

    label: str
    x: float
    y: float
    low: float
    high: float


def intervals(title: str, bars: Sequence[Bar], axis: str, *, zero: bool = False) -> str:
    """Rows of bars or dots, each with its interval, over a common axis.

    Args:
        title: says what is seen, for readers of the screen.
        bars: the rows, from the top.
        axis: what the axis measures.
        zero: the axis holds 0, with a line there.
    """
    ends = [
        end for bar in bars for end in (bar.value, bar.low, bar.high, bar.start) if end is not None
    ]
    low, high = _padded(min(ends), max(ends), zero=zero)
    left = 16 + _TEXT * max(len(bar.label) for bar in bars)
    right = WIDTH - 16 - _TEXT * max(len(bar.note) for bar in bars)
    height = 34 + _ROW * len(bars)
    x = _scale(low, high, left, right)
    parts = [_x_axis(x, _ticks(low, high, 5), 6, height - 34)]
    if zero:
        parts.append(_line(x(0), 6, x(0), height - 34, "zero"))
    for row, bar in enumerate(bars):
        y = 6 + _ROW * (row + 0.5)
        marks = [_text(left - 12, y + 4, bar.label, "end")]
        if bar.start is not None:
            ends = sorted((x(bar.start), x(bar.value)))
            marks.append(
                f'<rect class="bar {bar.tone}" x="{ends[0]:.1f}" y="{y - 8:.1f}" '
                f'width="{max(1.0, ends[1] - ends[0]):.1f}" height="16" rx="2"/>'
            )
        if bar.low < bar.high:
            marks.append(_line(x(bar.low), y, x(bar.high), y, "whisker"))
            marks += [_line(x(end), y - 4, x(end), y + 4, "whisker") for end in (bar.low, bar.high)]
        if bar.start is None:
            marks.append(
                f'<circle class="dot {bar.tone}" cx="{x(bar.value):.1f}" cy="{y:.1f}" r="5"/>'
            )
        marks.append(_text(right + 12, y + 4, bar.note, "start", "number"))
        tip = f"{bar.label}: {bar.note}"
        parts.append(f"<g><title>{escape(tip)}</title>{''.join(marks)}</g>")
    parts.append(_text((left + right) / 2, height - 2, axis, "middle", "axis"))
    return _svg(title, height + 4, parts)


def lines(
    title: str, series: Sequence[tuple[str, Sequence[float]]], x_name: str, y_name: str
) -> str:
    """One line a series over x = 1, 2, 3, ..., each with its name at its end."""
    height, top = 380.0, 14.0
    wide = max(len(values) for _, values in series)
    high = max(max(values) for _, values in series) or 1.0
    left, right = 56.0, WIDTH - 30 - _TEXT * max(len(name) for name, _ in series)
    x = _scale(1, max(2, wide), left, right)
    y = _scale(0, high * 1.04, height - 44, top)
    parts = [
        _y_axis(y, _ticks(0, high, 5), left, right),
        _x_axis(x, _depths(wide), top, height - 44),
    ]
    places = _apart([y(values[-1]) + 4 for _, values in series], 15.0, top + 6, height - 44)
    for number, ((name, values), place) in enumerate(zip(series, places, strict=True)):
        path = " ".join(
            f"{'L' if n else 'M'}{x(n + 1):.1f},{y(value):.1f}" for n, value in enumerate(values)
        )
        end = (x(len(values)), y(values[-1]))
        label = f"{name}, {values[-1]:.3f} at {len(values)}"
        parts.append(
            f'<g class="{_series(number)}"><title>{escape(label)}</title><path d="{path}"/>'
            + _line(end[0] + 2, end[1], end[0] + 14, place - 4, "leader")
            + _text(end[0] + 18, place, name, "start", "name")
            + "</g>"
        )
    parts.append(_text((left + right) / 2, height - 4, x_name, "middle", "axis"))
    parts.append(_text(left - 44, top - 2, y_name, "start", "axis"))
    return _svg(title, height, parts)


def scatter(title: str, points: Sequence[Point], x_name: str, y_name: str) -> str:
    """Points over a logarithmic x, each with the interval of its height and its name."""
    height, top, left, right = 380.0, 24.0, 56.0, WIDTH - 20
    floor = min(point.x for point in points if point.x > 0) if any(p.x > 0 for p in points) else 1.0
    logs = [math.log10(max(point.x, floor)) for point in points]
    x_low, x_high = math.floor(min(logs)), math.ceil(max(logs) + 1e-9)
    low, high = _padded(0.0, max(p.high for p in points), zero=True)
    x = _scale(x_low, max(x_high, x_low + 1), left + 14, right - 14)
    y = _scale(low, high, height - 44, top)
    powers = [(float(n), f"{10.0**n:g}") for n in range(x_low, max(x_high, x_low + 1) + 1)]
    parts = [_y_axis(y, _ticks(0, high, 5), left, right), _x_axis(x, powers, top, height - 44)]
    taken: list[tuple[float, float, float, float]] = [
        (x(log) - 7, y(point.y) - 7, x(log) + 7, y(point.y) + 7)
        for log, point in zip(logs, points, strict=True)
    ]
    for number, (log, point) in enumerate(zip(logs, points, strict=True)):
        at = (x(log), y(point.y))
        name = _placed(at, point.label, taken, (left, top, right, height - 44))
        tip = f"{point.label}: {point.x:.3g} ms, {point.y:.4f}"
        parts.append(
            f'<g class="{_series(number)}"><title>{escape(tip)}</title>'
            + _line(at[0], y(point.low), at[0], y(point.high), "whisker")
            + f'<circle class="dot" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5.5"/>{name}</g>'
        )
    parts.append(_text((left + right) / 2, height - 4, x_name, "middle", "axis"))
    parts.append(_text(left - 44, top - 10, y_name, "start", "axis"))
    return _svg(title, height, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _padded(low: float, high: float, *, zero: bool) -> tuple[float, float]:
    """The range of an axis that shows ``low`` to ``high`` with some air."""
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    air = 0.06 * (high - low) or max(abs(high), 1e-3)
    return (low if zero and low == 0 else low - air), (
        high if zero and high == 0 < -low else high + air
    )


def _ticks(low: float, high: float, about: int) -> list[tuple[float, str]]:
    """Round numbers from ``low`` to ``high``, about so many, and how they are written."""
    rough = (high - low) / about or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step))) + (step / power == 2.5)
    first = math.ceil(low / step - 1e-9)
    found = []
    while (value := first * step) <= high + 1e-9 * step:
        found.append((value, f"{value + 0.0:.{digits}f}"))
        first += 1
    return found


def _depths(wide: int) -> list[tuple[float, str]]:
    """Ticks of an axis from 1 to ``wide``."""
    return [
        (1.0, "1"),
        *(tick for tick in _ticks(0, wide, 5) if tick[0] >= 2 and tick[0] == int(tick[0])),
    ]


def _x_axis(
    x: Callable[[float], float], ticks: Sequence[tuple[float, str]], top: float, bottom: float
) -> str:
    return "".join(
        _line(x(value), top, x(value), bottom, "grid")
        + _text(x(value), bottom + 16, label, "middle", "tick")
        for value, label in ticks
    )


def _y_axis(
    y: Callable[[float], float], ticks: Sequence[tuple[float, str]], left: float, right: float
) -> str:
    return "".join(
        _line(left, y(value), right, y(value), "grid")
        + _text(left - 8, y(value) + 4, label, "end", "tick")
        for value, label in ticks
    )


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """``wanted`` heights moved so that no two lie closer than ``gap``, within [low, high]."""
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    found = list(wanted)
    floor = low
    for n in order:
        found[n] = max(wanted[n], floor)
        floor = found[n] + gap
    ceiling = high
    for n in reversed(order):
        found[n] = min(found[n], ceiling)
        ceiling = found[n] - gap
    return found


def _placed(
    at: tuple[float, float],
    label: str,
    taken: list[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
) -> str:
    """``label`` beside the point ``at``, where it hides nothing in ``taken``; then it is there."""
    wide, (x, y) = _TEXT * len(label), at
    spots = [(x + 10, y - 6 + dy) for dy in (0, -12, 12, -24, 24, -36, 36)]
    spots += [(x - 10 - wide, y - 6 + dy) for dy in (0, -12, 12, -24, 24, -36, 36)]
    boxes = [(a, b, a + wide, b + 12) for a, b in spots]
    inside = [
        box
        for box in boxes
        if box[0] >= frame[0]
        and box[2] <= frame[2]
        and box[1] >= frame[1] - 8
        and box[3] <= frame[3]
    ]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    box = (free or inside or boxes)[0]
    taken.append(box)
    return _text(box[0], box[1] + 10, label, "start", "name")


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _series(number: int) -> str:
    return f"series s{number % SERIES} d{number // SERIES % 3}"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
