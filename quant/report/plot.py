"""Quality against size as an SVG picture: every model a labelled point, the frontier a line."""

import math
from collections.abc import Sequence
from html import escape

from localllm.svg_axes import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes
from quant.report.record import Report, Row

_ROUNDING = 1e-6  # a divergence below this is none
_COLOURS = {"frontier": "#1f6f5c", "beaten": "#9a9a9a", "source": "#7a4fb5"}
_LETTER, _LINE = 6.2, 12  # of the labels, in the picture's units

Box = tuple[float, float, float, float]


def foot(rows: Sequence[Row]) -> float:
    """Where the source is drawn, which diverges by 0 and has no logarithm: at the power of ten below all others."""
    least = min((row.kl for row in rows if row.kl > _ROUNDING), default=10 * _ROUNDING)
    return float(10.0 ** math.floor(math.log10(least / 1.5)))


def _size_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Four to eight round sizes from ``low`` to ``high`` bytes, as a person writes them."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (factor * step) >= 3)
    unit, name = next((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if high >= unit)
    first = math.ceil(low / step)
    ticks = [step * index for index in range(first, int(high / step) + 1)]
    return [(tick, f"{tick / unit:g} {name}") for tick in ticks]


def _kl_ticks(low: float, high: float, foot: float) -> list[tuple[float, str]]:
    """Every power of ten from ``low`` to ``high`` (logarithms); at the foot is 0."""
    whole = range(math.ceil(low), math.floor(high) + 1)
    return [(power, "0" if power <= math.log10(foot) + 0.5 else f"{10.0**power:g}") for power in whole]


def _size_range(rows: Sequence[Row]) -> tuple[float, float]:
    """From below the smallest to above the largest, in bytes."""
    low, high = min(row.n_bytes for row in rows), max(row.n_bytes for row in rows)
    margin = 0.08 * (high - low) or 0.1 * high
    return max(low - margin, 0), high + margin


def quality_plot(report: Report) -> str:
    """The picture. Up is worse, right is larger: what is near the lower left corner is good."""
    rows, least = report.rows, foot(report.rows)
    heights = [math.log10(max(row.kl, least)) for row in rows]
    axes = Axes(_size_range(rows), (math.log10(least) - 0.15, max(*heights, math.log10(least) + 1) + 0.2))
    parts = axes.frame(
        f"{report.model}: what its smaller forms lose",
        "size of the files; mean KL divergence from the source, nats a token",
        _size_ticks(*axes.x_range),
        _kl_ticks(*axes.y_range, least),
    )
    places = {row.name: axes.place(row.n_bytes, height) for row, height in zip(rows, heights, strict=True)}
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (places[row.name] for row in report.frontier))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS["frontier"]}" stroke-dasharray="4 3"/>')
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    best = report.recommended
    for row in sorted(rows, key=lambda row: bool(row.beaten_by)):
        x, y = places[row.name]
        role = "source" if row.kind == "source" else "beaten" if row.beaten_by else "frontier"
        fill = "white" if row.beaten_by else _COLOURS[role]
        if row is best:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="{_COLOURS[role]}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{_COLOURS[role]}"/>')
        label = short_name(row, report)
        across, down = _room(x, y, _LETTER * len(label), taken)
        parts.append(f'<text font-size="11" x="{across:.1f}" y="{down:.1f}" fill="#333">{escape(label)}</text>')
    legend = "● best of its size  ○ beaten  ◎ recommended"
    parts.append(f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end" font-size="12" fill="#555">{legend}</text></svg>')
    return "\n".join(parts) + "\n"


def short_name(row: Row, report: Report) -> str:
    """Without what all names share: ``:q4_k_m`` for a variant of the source."""
    name = report.model.partition(":")[0]
    return row.name.removeprefix(name) if row.name.startswith(f"{name}:") else row.name


def _room(x: float, y: float, width: float, taken: list[Box]) -> tuple[float, float]:
    """Where a label has room beside its point: right, left, above, below, further off; it is taken then."""
    right, left, middle = x + 12, x - 12 - width, x - width / 2
    tries = [(right, y + 4), (left, y + 4), (middle, y - 12), (middle, y + 20)]
    tries += [(across, y + 4 + down) for down in (-12, 12, -24, 24, -36, 36) for across in (right, left)]
    fitting = [place for place in tries if _is_free(place, width, taken)]
    across, down = fitting[0] if fitting else tries[0]
    taken.append((across, down - _LINE + 2, across + width, down + 2))
    return across, down


def _is_free(place: tuple[float, float], width: float, taken: Sequence[Box]) -> bool:
    left, low = place
    right, high = left + width, low - _LINE + 2
    inside = left > LEFT and right < WIDTH - RIGHT and high > TOP - 8 and low < HEIGHT - 34
    return inside and all(right < box[0] or left > box[2] or low + 2 < box[1] or high > box[3] for box in taken)
