"""The line under the prompt: the model, what goes on, the speed, and how full the context is."""

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from app.tui.styles import FAINT, MUTED
from localllm.sanitize import one_line

_METER = 10


@dataclass(frozen=True)
class Speed:
    """What the last answer took.

    Attributes:
        tokens_per_second: Decode speed.
        n_used: Tokens in the context: prompt and answer.
        n_ctx: Tokens that the context holds.
    """

    tokens_per_second: float
    n_used: int
    n_ctx: int


def meter(used: int, total: int, width: int = _METER) -> str:
    """A bar that is readable without colours: filled and empty cells differ in shape."""
    filled = min(width, max(1, round(width * used / total))) if total and used else 0
    return "━" * filled + "┄" * (width - filled)


class StatusLine(Static):
    """Shows its reactive attributes; whoever knows them sets them."""

    model: reactive[str] = reactive("")
    doing: reactive[str] = reactive("")
    speed: reactive[Speed | None] = reactive(None)

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  the name Textual gives it
        super().__init__(id=id, markup=False)

    def render(self) -> Content:
        """``smollm2-135m:q4_1 · 41 tok/s · 812/8192 ━┄┄┄┄┄┄┄┄┄ 10 %``."""
        parts = [Content.styled(one_line(self.model, 40) or "no model", "$accent" if self.model else "$warning")]
        if self.doing:
            parts.append(Content.styled(one_line(self.doing, 60), MUTED))
        elif self.speed is not None:
            if self.speed.tokens_per_second:
                parts.append(Content.styled(f"{self.speed.tokens_per_second:.0f} tok/s", MUTED))
            if self.speed.n_ctx:
                parts.append(self._fullness(self.speed))
        return Content.styled(" · ", FAINT).join(parts)

    def _fullness(self, speed: Speed) -> Content:
        share = speed.n_used / speed.n_ctx
        colour = "$error" if share > 0.9 else "$warning" if share > 0.7 else MUTED
        return Content.assemble(
            (f"{speed.n_used}/{speed.n_ctx} ", MUTED),
            (meter(speed.n_used, speed.n_ctx), colour),
            (f" {share:.0%}".replace("%", " %"), colour),
        )
