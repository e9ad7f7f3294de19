"""Names of the few styles that drawn text shares with the style sheet, and signs for how a job stands."""

from localllm.jobs.record import StateName

# "$text-muted" is relative to the background, which a Content does not know: it would be drawn at full strength.
MUTED = "$foreground 60%"
FAINT = "$foreground 35%"

SIGNS: dict[StateName, tuple[str, str]] = {
    "running": ("▸", "$accent"),
    "waiting": ("◦", "$accent"),
    "queued": ("◦", "$accent"),
    "new": ("◦", MUTED),
    "done": ("✓", "$success"),
    "cancelled": ("·", MUTED),
    "failed": ("✗", "$error"),
    "dead": ("✗", "$error"),
}
