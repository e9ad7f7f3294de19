"""Quality against size: a labelled point for each model. It reads the same without colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from textual.content import Content
from textual.widgets import Static

from app.tui.markdown import harmless
from app.tui.styles import FAINT, MUTED
from app.tui.widgets.plot_canvas import Axis, Series, plot

Role = Literal["best", "source", "frontier", "beaten"]

# What is first is labelled first, where there is too little room for all.
_MARKS: dict[Role, tuple[str, str, str]] = {
    "best": ("★", "$accent", "recommended"),
    "source": ("◆", "$secondary", "source"),
    "frontier": ("●", "$accent", "frontier"),
    "beaten": ("○", MUTED, "beaten"),
}


@dataclass(frozen=True)
class Spot:
    """One point.

    Attributes:
        label: Beside it, where there is room.
        size: In bytes.
        loss: Mean KL divergence from the source in nats a token; above zero, because its axis is logarithmic.
        role: What it is: its mark and colour.
    """

    label: str
    size: int
    loss: float
    role: Role


class Scatter(Static):
    """Shows some points, as large as there is room; a line joins all that are not beaten."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  Textual's name
        super().__init__(id=id, markup=False)
        self._spots: Sequence[Spot] = ()

    def show(self, spots: Sequence[Spot]) -> None:
        """Draw these from now on, those of the line in its order."""
        self._spots = spots
        self.refresh()

    def render(self) -> Content:
        """The plot, and below it what the marks mean."""
        width, height = self.content_size.width, self.content_size.height
        if not self._spots:
            return Content("")
        joined = [(float(spot.size), spot.loss) for spot in self._spots if spot.role != "beaten"]
        series = [Series(joined, style=FAINT)]
        series += [_series(role, [spot for spot in self._spots if spot.role == role]) for role in _MARKS]
        low, high = _margins(self._spots)
        axes = Axis("bytes", low=low, high=high), Axis("mean KL, nats a token (the source at the foot)", log=True)
        lines = plot(series, width, max(0, height - 1), *axes, axis_style=MUTED)
        legend = "  ".join(f"{mark} {text}" for mark, _, text in _MARKS.values())
        return Content("\n").join(
            [*(Content.assemble(*line) for line in lines), Content(legend).truncate(width, ellipsis=True)]
        )


def _series(role: Role, spots: Sequence[Spot]) -> Series:
    mark, style, _ = _MARKS[role]
    points = [(float(spot.size), spot.loss) for spot in spots]
    return Series(points, mark, False, style, [harmless(spot.label) for spot in spots])


def _margins(spots: Sequence[Spot]) -> tuple[float, float]:
    """A little more than the sizes span: marks at the very edge have no room for labels."""
    low, high = min(spot.size for spot in spots), max(spot.size for spot in spots)
    margin = 0.08 * (high - low) or 0.1 * high
    return low - margin, high + margin
