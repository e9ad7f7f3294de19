"""A training in words: how it stands, and what it told."""

from collections.abc import Sequence

from textual.content import Content

from app.cli.output import human_bytes, human_seconds
from app.tui.markdown import harmless
from app.tui.styles import MUTED, SIGNS
from app.tui.trainings import Run
from localllm.sanitize import one_line

_BAR_CELLS = 24
_GAP = "   "
_SAMPLE_LINES = 6


def head_lines(run: Run, width: int) -> list[Content]:
    """How it stands, in lines of at most about ``width`` cells."""
    if run.is_gone:
        return [Content.styled("This training was removed. t shows others.", "$error")]
    lines = [_state(run), *_flow(_figures(run), width)]
    status = run.row.status
    if status.state in ("failed", "dead"):
        lines.append(Content.styled(harmless(f"{status.message} {status.hint}".strip()), "$error"))
    if status.state in ("failed", "dead", "cancelled") and run.row.job.spec.resumable:
        lines.append(Content(f"r goes on from update {run.saved}." if run.saved else "r begins it again."))
    if status.state == "done":
        lines.append(Content(f"{_change(run)}Enter chats with it."))
    return lines


def said_lines(run: Run) -> list[Content]:
    """What the model said last, and what the training told."""
    lines: list[Content] = []
    if run.samples:
        at = run.samples[-1].step
        when = f"After {at:,} update{'' if at == 1 else 's'}" if at else "Before the first update"
        lines.append(Content.styled(f"{when} the model answers", MUTED))
    for sample in run.samples:
        answer = harmless(sample.text).strip().split("\n")
        more = ["…"] if len(answer) > _SAMPLE_LINES else []
        lines.append(Content.styled(harmless(f"> {one_line(sample.prompt, 200)}"), MUTED))
        lines += [Content(f"  {line}") for line in [*answer[:_SAMPLE_LINES], *more]]
    return [*lines, *(Content.styled(harmless(one_line(text, 300)), MUTED) for text in run.messages)]


def _state(run: Run) -> Content:
    row, step = run.row, run.step
    sign, style = SIGNS[row.status.state]
    state = f"{row.status.state} {one_line(row.status.detail, 80)}".rstrip()
    parts: list[tuple[str, str]] = [(sign, style), (harmless(f" {state}"), "")]
    if row.status.state in ("running", "done", "cancelled", "failed", "dead") and step is not None and step.total:
        share = min(1.0, step.step / step.total)
        filled = int(_BAR_CELLS * share)
        parts += [
            (f"{_GAP}update {step.step:,} of {step.total:,}  ", ""),
            ("█" * filled, "$accent"),
            ("░" * (_BAR_CELLS - filled), MUTED),
            (f" {share:.0%}", ""),
        ]
    elif row.status.state == "running" and (progress := row.latest.progress) is not None:
        so_far = f"{progress.done / progress.total:.0%}" if progress.total else f"{progress.done:,.0f}"
        what = f"{one_line(progress.item or progress.stage, 40)}: {so_far}"
        if run.held_out:
            what = "making the first update"
        elif progress.done == progress.total:  # the rows are there
            what = "loading the model, measuring what it takes"
        parts.append((harmless(_GAP + what), MUTED))
    if row.status.state == "running" and step is not None and run.seconds_left is not None:
        parts.append((f"{_GAP}{human_seconds(run.seconds_left)} left", ""))
    elif row.status.has_ended and row.seconds is not None:
        parts.append((f"{_GAP}{human_seconds(row.seconds)}", MUTED))
    return Content.assemble(*parts)


def _figures(run: Run) -> list[str]:
    """Each a word or two and a figure."""
    figures: list[str] = []
    metrics = run.step.metrics if run.step is not None else {}
    if "loss" in metrics:
        figures.append(f"loss {metrics['loss']:.3f}")
    if run.held_out:
        figures.append(f"held out {_held_out(run)}")
    if run.tokens_per_second:
        figures.append(f"{run.tokens_per_second:,.0f} tok/s learnt")
    if "learning_rate" in metrics:
        figures.append(f"rate {metrics['learning_rate']:.2g}")
    if "memory" in metrics:
        expected = f" of {human_bytes(run.predicted)} expected" if run.predicted else ""
        figures.append(f"memory {human_bytes(int(metrics['memory']))}{expected}")
    if "gradient_norm" in metrics:
        figures.append(f"gradient {metrics['gradient_norm']:.3g}")
    if run.saved:
        figures.append(f"saved at {run.saved:,}")
    return figures


def _held_out(run: Run) -> str:
    """The first, the last, and the best where that is another."""
    first, last = run.held_out[0], run.held_out[-1]
    best = min(run.held_out, key=lambda point: point[1])
    text = f"{first[1]:.3f}" if first == last else f"{first[1]:.3f} → {last[1]:.3f}"
    return text if best in (first, last) else f"{text} (best {best[1]:.3f} at {best[0]:,.0f})"


def _change(run: Run) -> str:
    if len(run.held_out) < 2:
        return ""
    before, after = run.held_out[0][1], min(point[1] for point in run.held_out[1:])
    return f"Held-out loss {before:.3f} before, {after:.3f} after. "


def _flow(parts: Sequence[str], width: int) -> list[Content]:
    """Parts in lines, none of them cut."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines.append(part)
    return [Content.styled(line, MUTED) for line in lines]
