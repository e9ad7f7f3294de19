"""The frame of a plot as an SVG picture: title, ticks, grid and axis labels. What is plotted goes between."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, BOTTOM, TOP, RIGHT = 56, 40, 32, 16

Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Axes:
    """A picture of 720 by 400 with two linear axes; for a logarithmic one, give logarithms.

    Attributes:
        x_range: The values at the left and right edge.
        y_range: The values at the lower and upper edge.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the picture."""
        (left, right), (low, high) = self.x_range, self.y_range
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / (right - left)
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)

    def frame(self, title: str, label: str, x_ticks: Ticks, y_ticks: Ticks) -> list[str]:
        """The first lines of the picture; ``</svg>`` ends it.

        Args:
            title: Above the picture.
            label: Below it: what both axes show.
            x_ticks: Values and how they are written, along the lower edge.
            y_ticks: The same along the left edge, each with a line across.
        """
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        ]
        for value, text in y_ticks:
            _, y = self.place(self.x_range[0], value)
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text font-size="12" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        for value, text in x_ticks:
            x, _ = self.place(value, self.y_range[0])
            parts.append(
                f'<text font-size="12" x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{escape(text)}</text>'
            )
        parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(label)}</text>')
        return parts
