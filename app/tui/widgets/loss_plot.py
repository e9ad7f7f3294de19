"""The curves of a training: loss by update as a line, held-out loss as dots on it."""

from textual.content import Content
from textual.widget import Widget

from app.tui.styles import FAINT, MUTED
from app.tui.trainings import Point
from app.tui.widgets.plot_canvas import Axis, Series, plot

_LEGEND = "loss   ⣀⡠ training   ● held out"


class LossPlot(Widget):
    """Draws both curves; it draws anew only when there is something new.

    Attributes:
        is_log: The losses are on a logarithmic axis.
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  the name Textual gives it
        super().__init__(id=id)
        self.is_log = False
        self._train: tuple[Point, ...] = ()
        self._held_out: tuple[Point, ...] = ()
        self._n_steps = 0

    def show(self, train: tuple[Point, ...], held_out: tuple[Point, ...], n_steps: int) -> None:
        """Take the points.

        Args:
            train: Update and loss.
            held_out: Update and held-out loss.
            n_steps: Updates of the whole run; 0 while unknown.
        """
        if (train, held_out, n_steps) != (self._train, self._held_out, self._n_steps):
            self._train, self._held_out, self._n_steps = train, held_out, n_steps
            self.refresh()

    def toggle_log(self) -> None:
        """Change between a linear and a logarithmic axis."""
        self.is_log = not self.is_log
        self.refresh()

    def render(self) -> Content:
        """The plot, or what will be there."""
        if not (self._train or self._held_out):
            return Content.styled("The loss is drawn here from the first update on.", MUTED)
        last = max(points[-1][0] for points in (self._train, self._held_out) if points)
        series = [
            Series(self._train, style="$accent"),
            Series(self._held_out, mark="●", joined=False, style="$warning"),
        ]
        lines = plot(
            series,
            self.size.width,
            self.size.height,
            Axis("update", low=0, high=max(last, self._n_steps, 1)),
            Axis(_LEGEND + ("   logarithmic" if self.is_log else ""), log=self.is_log),
            axis_style=FAINT,
        )
        return Content("\n").join(Content.assemble(*line) for line in lines)
