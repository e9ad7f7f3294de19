"""The loss curve as an SVG picture."""

from collections.abc import Sequence
from typing import Any

from localllm.svg_axes import RIGHT, WIDTH, Axes

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
    axes = Axes((0.0, last), (low, high))
    fifths = [i / 4 for i in range(5)]
    parts = axes.frame(
        title,
        "updates; loss in nats a token",
        [(last * share, f"{last * share:.0f}") for share in fifths],
        [(low + (high - low) * share, f"{low + (high - low) * share:.2f}") for share in fifths],
    )
    parts.append(_line([axes.place(*point) for point in train], "#7aa2d6", 1))
    parts.append(_line([axes.place(*point) for point in valid], "#c0392b", 2))
    dots = (axes.place(*point) for point in valid)
    parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#c0392b"/>' for x, y in dots)
    legend = "training <tspan fill='#c0392b'>held out</tspan>"
    parts.append(f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end" fill="#7aa2d6">{legend}</text></svg>')
    return "\n".join(part for part in parts if part) + "\n"


def _line(points: Points, colour: str, width: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>' if points else ""
