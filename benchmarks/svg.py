"""Bar charts as SVG, by hand: a few rectangles and words need no library. Pure: figures in, text out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 760
_LABELS: Final = 150
"""Pixels for names on the left."""
_VALUES: Final = 110
"""And for figures on the right."""
_BAR: Final = 16
_GAP: Final = 5
_GROUP_GAP: Final = 18
_HEAD: Final = 68
_FOOT: Final = 16
_FONT: Final = "font-family='system-ui, sans-serif'"
_OURS: Final = "#0b7285"
_THEIRS: Final = "#adb5bd"
_INK: Final = "#212529"
_SOFT: Final = "#868e96"


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure with its spread."""

    label: str
    value: float
    low: float
    high: float
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that are to be compared; the title stands above them."""

    title: str
    bars: tuple[Bar, ...]


def _text(
    x: float, y: float, words: str, *, size: int = 12, fill: str = _INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {_FONT} font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}>"
        f"{escape(words)}</text>"
    )


def show(value: float) -> str:
    """A figure with as many digits as one reads."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def bar_chart(title: str, subtitle: str, groups: Sequence[Group]) -> str:
    """Horizontal bars from zero, each group on a scale of its own; the thin line is the spread from the lowest to the highest round.

    A bar that is more than five times as long as the group's median is cut, and says so: else one slow peer would flatten all others.
    """
    parts: list[str] = []
    y = float(_HEAD)
    for group in groups:
        parts.append(_text(16, y, group.title, bold=True))
        y += 10
        limit = _limit(group)
        scale = (WIDTH - _LABELS - _VALUES) / limit
        for bar in group.bars:
            parts += _bar(bar, y, scale, limit)
            y += _BAR + _GAP
        y += _GROUP_GAP
    height = y + _FOOT
    head = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height:.0f}' viewBox='0 0 {WIDTH} {height:.0f}' role='img'>",
        f"<title>{escape(title)}</title>",
        "<rect width='100%' height='100%' fill='#ffffff'/>",
        _text(16, 24, title, size=16, bold=True),
        _text(16, 41, subtitle, fill=_SOFT),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _limit(group: Group) -> float:
    """The value at the right edge."""
    values = sorted(max(bar.value, 0.0) for bar in group.bars)
    highest = max([bar.high for bar in group.bars if bar.value == values[-1]] + values)
    middle = values[len(values) // 2]
    limit = min(highest, middle * 5) if middle > 0 else highest
    return limit if limit > 0 and math.isfinite(limit) else 1.0


def _bar(bar: Bar, y: float, scale: float, limit: float) -> list[str]:
    is_cut = bar.value > limit
    width = max(0.0, min(bar.value, limit)) * scale
    low, high = (max(0.0, min(value, limit)) * scale + _LABELS for value in (bar.low, bar.high))
    middle = y + _BAR / 2
    parts = [
        _text(_LABELS - 8, middle + 4, bar.label, anchor="end", fill=_OURS if bar.is_ours else _INK, bold=bar.is_ours),
        f"<rect x='{_LABELS}' y='{y:.1f}' width='{width:.1f}' height='{_BAR}' rx='2' fill='{_OURS if bar.is_ours else _THEIRS}'/>",
    ]
    if not is_cut:
        parts.append(f"<path d='M{low:.1f} {middle:.1f}H{high:.1f}' stroke='{_INK}' stroke-width='1'/>")
    end = max(_LABELS + width, 0.0 if is_cut else high) + 8
    parts.append(_text(end, middle + 4, show(bar.value) + (" (cut)" if is_cut else "")))
    return parts
