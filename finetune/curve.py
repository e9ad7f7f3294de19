"""The loss curve as an SVG picture."""

from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 400, 56, 40, 32, 16

Points = Sequence[tuple[float, float]]


def loss_curve(history: Sequence[dict[str, Any]], title: str) -> str:
    """Training loss (a thin line), and held-out loss (dots on a line), by update."""
    train = [(float(record["step"]), float(record["loss"])) for record in history if "loss" in record]
    valid = [(float(record["step"]), float(record["valid_loss"])) for record in history if "valid_loss" in record]
    steps = [step for step, _ in (*train, *valid)] or [0.0]
    losses = [loss for _, loss in (*train, *valid)] or [0.0]
    low, high = min(losses), max(losses)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    last = max(steps) or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - loss) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for i in range(5):
        loss = low + (high - low) * i / 4
        _, y = place(0, loss)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text font-size="12" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        x, _ = place(last * i / 4, low)
        parts.append(
            f'<text font-size="12" x="{x:.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{last * i / 4:.0f}</text>'
        )
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">updates; loss in nats a token</text>')
    parts.append(_line([place(*point) for point in train], "#7aa2d6", 1))
    parts.append(_line([place(*point) for point in valid], "#c0392b", 2))
    dots = (place(*point) for point in valid)
    parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#c0392b"/>' for x, y in dots)
    legend = "training <tspan fill='#c0392b'>held out</tspan>"
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="20" text-anchor="end" fill="#7aa2d6">{legend}</text></svg>')
    return "\n".join(part for part in parts if part) + "\n"


def _line(points: Points, colour: str, width: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>' if points else ""
