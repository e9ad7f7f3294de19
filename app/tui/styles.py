"""Names of the few styles that drawn text shares with the style sheet."""

# "$text-muted" is relative to the background, which a Content does not know: it would be drawn at full strength.
MUTED = "$foreground 60%"
FAINT = "$foreground 35%"
